"""What every stage stands on: the raw dataset, writing files, the cores of the machine."""
