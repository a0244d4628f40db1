"""Reading: any crawl file -> records, in bounded memory, with every loss named."""

from pipelines.read.parts import plan_parts, records
from pipelines.read.record import Record

__all__ = ["Record", "plan_parts", "records"]
