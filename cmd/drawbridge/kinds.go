package main

import (
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/northbound/aws"
	"github.com/drawbridge/drawbridge/northbound/azure"
	"github.com/drawbridge/drawbridge/northbound/http"
	northmqtt "github.com/drawbridge/drawbridge/northbound/mqtt"
	"github.com/drawbridge/drawbridge/northbound/onem2m"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/coap"
	"github.com/drawbridge/drawbridge/southbound/mqtt"
)

// builtin is what this program can listen with and connect to, by type.
type builtin struct {
	listeners  map[string]southbound.Kind
	connectors map[string]northbound.Kind
}

// kinds makes the two lists of what is built in. Listeners of one type share what their kind holds, such as the topic space of MQTT,
// so a gateway makes its kinds once.
func kinds() builtin {
	b := builtin{map[string]southbound.Kind{}, map[string]northbound.Kind{}}
	for _, k := range []southbound.Kind{
		coap.Kind(),
		mqtt.NewKind(),
	} {
		b.listeners[k.Type] = k
	}
	for _, k := range []northbound.Kind{
		northmqtt.Kind(),
		aws.Kind(),
		azure.Kind(),
		onem2m.Kind(),
		http.Kind(),
	} {
		b.connectors[k.Type] = k
	}
	return b
}

// config gives the types to the parser of the file.
func (b builtin) config() config.Kinds {
	k := config.Kinds{Listeners: map[string]func() any{}, Connectors: map[string]func() any{}}
	for t, kind := range b.listeners {
		k.Listeners[t] = kind.Config
	}
	for t, kind := range b.connectors {
		k.Connectors[t] = kind.Config
	}
	return k
}
