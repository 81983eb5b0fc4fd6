package bridge

// Groups gives what is known of a device's groups: those of the configuration, and those that its credential has shown.
func (b *Bridge) Groups(device string) []string { return b.state.Load().groups(device) }
