"""The flows by name: what `gristmill flow run|deploy` and `prefect.yaml` name."""

from flows.prefect_job import flow_of  # first: it prepares Prefect's environment

from flows.curation import CURATION
from flows.demo import DEMO
from flows.post_training import POST_TRAINING

demo_flow = flow_of(DEMO)
curation_flow = flow_of(CURATION)
post_training_flow = flow_of(POST_TRAINING)
FLOWS = {job.name: made for job, made in ((DEMO, demo_flow), (CURATION, curation_flow), (POST_TRAINING, post_training_flow))}
