"""nn.LSTM and LSTM side by side."""

import torch
from torch import nn

from lstm_compile import LSTM

INPUT, HIDDEN = 4, 6


def pair(**options):
    """nn.LSTM and LSTM with the same weights."""
    torch.manual_seed(0)
    theirs = nn.LSTM(INPUT, HIDDEN, batch_first=True, **options)
    ours = LSTM(INPUT, HIDDEN, batch_first=True, chunk=2, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours
