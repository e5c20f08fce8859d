"""Results tables: reading, checking, flagging, filtering."""
