"""What shows lines: a plain pane, the table of tunnels, bars to click on, the log."""
