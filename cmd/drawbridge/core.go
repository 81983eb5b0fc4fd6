package main

import (
	"log/slog"

	"golang.org/x/sys/unix"
)

// noCore sees that this process leaves no core dump: what TLS and DTLS have derived for their sessions would be in it.
func noCore(log *slog.Logger) {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		log.Warn("core dumps cannot be turned off", "error", err)
	}
}
