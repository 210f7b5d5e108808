"""What every test needs."""

import torch

# Beside other work on the same cores, threads that wait for each other make small operations many times slower.
torch.set_num_threads(1)
