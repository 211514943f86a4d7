"""Published boards: BARS's folder form, and published figures beside ours."""
