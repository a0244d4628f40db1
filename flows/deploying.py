"""Register a flow with a Prefect server: the code is taken from where it is installed, a worker runs it."""

from pathlib import Path

from flows import prefect_flows


def deploy_flow(name: str, pool: str, cron: str | None = None) -> str:
    """Make (or change) the deployment `gristmill-<name>/<name>` in a work pool; returns its id.

    Raises:
        UserError: the server has no such work pool.
    """
    from prefect.exceptions import ObjectNotFound
    from prefect.flows import Flow

    from pipelines.errors import UserError

    attribute = f"{name.replace('-', '_')}_flow"
    root = Path(prefect_flows.__file__).resolve().parents[1]
    flow = Flow.from_source(source=str(root), entrypoint=f"flows/prefect_flows.py:{attribute}")
    try:
        return str(flow.deploy(name=name, work_pool_name=pool, cron=cron, build=False, push=False, print_next_steps=False, ignore_warnings=True))
    except (ObjectNotFound, ValueError) as error:
        raise UserError(f"work pool {pool!r}: {' '.join(str(error).split())} (`prefect work-pool create {pool} --type process` makes one)") from None
