"""The jobs as Prefect flows, by the names that `prefect.yaml` gives as entry points."""

from flows.prefect_job import flow_of  # first: it prepares Prefect's environment

from flows.jobs import JOBS  # noqa: I001

demo_flow = flow_of(JOBS["demo"])
curation_flow = flow_of(JOBS["curation"])
post_training_flow = flow_of(JOBS["post-training"])
