"""Tables of runs: reading, checking, flagging and filtering them."""
