package lwm2m

// dataType is a type of resources (TS Core 1.1 appendix C). Times are integers on the wire.
type dataType byte

const (
	opaque  dataType = '-' // or not known, or nothing to be read
	text    dataType = 's'
	integer dataType = 'i'
	float   dataType = 'f'
	boolean dataType = 'b'
	link    dataType = 'l'
)

// core gives the types of the resources 0, 1, 2, ... of the core objects that devices report on.
var core = map[uint16]string{
	3: "ssss--iiiiii-issssssiil", // Device
	4: "iiiissisiiiii",           // Connectivity Monitoring
	5: "-s-i-issii",              // Firmware Update
	6: "ffff-if",                 // Location
}

// shared gives the types of the reusable resources of the OMA registry, the same in every object that uses them.
var shared = map[uint16]dataType{
	5500: boolean, 5501: integer, 5502: boolean, 5503: integer, 5504: integer, 5506: integer, // digital input
	5513: text, 5514: text, 5515: text, 5516: text, 5518: integer, // position, timestamp
	5521: float, 5525: float, 5526: integer, 5527: text, 5534: integer, 5538: float, 5544: float, // timers
	5601: float, 5602: float, 5603: float, 5604: float, 5700: float, 5701: text, // sensors
	5702: float, 5703: float, 5704: float, 5705: float, 5706: text, // axes, compass, colour
	5750: text, 5751: text, 5800: float, 5805: float, 5810: float, 5815: float, 5820: float, 5821: float, // power
	5850: boolean, 5851: integer, 5852: integer, 5900: float, 6050: float, // actuators
}

// typeOf gives the type of a resource.
func typeOf(object, resource uint16) dataType {
	if types, ok := core[object]; ok {
		if int(resource) < len(types) {
			return dataType(types[resource])
		}
		return opaque
	}
	if t, ok := shared[resource]; ok {
		return t
	}
	return opaque
}
