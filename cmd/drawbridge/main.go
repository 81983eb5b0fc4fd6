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

// version is set by the linker; "devel" where it is not.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}
