package azure

import (
	"time"

	"github.com/drawbridge/drawbridge/northbound"
)

// SetLeastRenewal changes the shortest time between two re-authentications.
func SetLeastRenewal(c northbound.Connector, d time.Duration) { c.(*Connector).leastRenewal = d }
