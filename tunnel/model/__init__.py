"""Pure data: addresses, URLs, options, settings, specs, states, snapshots and events. No I/O."""
