"""The GPU twins: one Triton file a kernel family. They compute what `kernels/<family>.py` says, whose public functions choose by device."""
