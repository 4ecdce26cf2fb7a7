"""Parts that several test suites use: what the machine must have, and file systems that misbehave on demand."""
