"""Flows: the command, the flows Prefect runs, the report. The only package that knows Prefect.

Import the room you need (`from flows.demo import demo`); this file stays empty so that `gristmill --help` is quick.
"""
