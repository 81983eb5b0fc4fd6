package azure

import (
	"time"

	"github.com/drawbridge/drawbridge/northbound"
)

// SetLeastRenewal changes the shortest time between two re-authentications.
func SetLeastRenewal(c northbound.Connector, d time.Duration) { c.(*Connector).leastRenewal = d }

// SetLeastPoll changes the shortest time between two questions to the provisioning service.
func SetLeastPoll(c northbound.Connector, d time.Duration) { c.(*Connector).leastPoll = d }
