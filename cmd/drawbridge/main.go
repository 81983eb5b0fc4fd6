// Command drawbridge is an IoT edge gateway: devices come in over CoAP/DTLS and MQTT/TLS, what they say is translated, stored
// safely and forwarded to clouds, and what clouds command reaches the devices. All TLS keys live in a chip.
//
// One file per verb; kinds.go lists the listeners and connectors that are built in; gateway.go puts the house together.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// Set by the linker; as they stand where it does not.
var (
	version = "devel"
	built   = "2026-11-01T00:00:00Z" // the commit's time: no clock that stands before it is right
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:], streams{os.Stdin, guarded(os.Stdout), guarded(os.Stderr)})
	stop()
	os.Exit(code)
}
