"""The jobs by name."""

from flows.curation import CURATION
from flows.demo import DEMO
from flows.post_training import POST_TRAINING
from flows.steps import Job

JOBS: dict[str, Job] = {job.name: job for job in (DEMO, CURATION, POST_TRAINING)}
