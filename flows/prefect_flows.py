"""The jobs as Prefect flows, by the names that `prefect.yaml` gives as entry points."""

from flows.jobs import JOBS
from flows.prefect_job import flow_of

demo_flow = flow_of(JOBS["demo"])
curation_flow = flow_of(JOBS["curation"])
post_training_flow = flow_of(JOBS["post-training"])
