package aws

import (
	"time"

	"github.com/drawbridge/drawbridge/northbound"
)

// SetBetween changes the time between log-ins.
func SetBetween(c northbound.Connector, d time.Duration) { c.(*Connector).between = d }
