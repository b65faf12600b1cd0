"""On PYTHONPATH of test engines: NIXL's progress thread sleeps a millisecond between two looks.

NIXL 1.5 tells it not to, so that an idle engine takes a whole core: fine beside eight GPUs, and most of a test machine.
"""

try:
    import nixl_cu12._bindings as bindings
except ImportError:
    bindings = None

PAUSE_US = 1000

if bindings is not None:
    _Settings = bindings.nixlAgentConfig

    class PatientSettings(_Settings):
        """Takes a pause for none."""

        def __setattr__(self, name, value):
            super().__setattr__(name, PAUSE_US if name == "pthrDelay" and not value else value)

    bindings.nixlAgentConfig = PatientSettings
