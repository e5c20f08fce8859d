"""What a step costs: compilation ahead of time, HLO, roofline, traces."""
