package main

import (
	"encoding/pem"
	"fmt"
	"net"
	"strings"

	"github.com/drawbridge/drawbridge/northbound/northtest"
)

const commands = `
[[downlink]]
name = "set"
from = "cloud"
topic = "cmd/{device}/set"
resource = "/set"
`

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

func (h *house) awsRefuses() {
	m := &moods{}
	b := northtest.NewBroker(h, m.options())
	c := b.CA.Server(h)
	c.NextProtos = []string{"x-amzn-mqtt-ca"}
	b.Listen(h, c)
	h.configure(h.identity(b.CA), shop, commands, fmt.Sprintf("[connector.cloud]\ntype = \"aws\"\nendpoint = \"localhost:%s\"\nkey = \"identity\"\nca = %q\n", portOf(b.Addr), b.CA.File(h)))
	m.set("no commands")
	h.start()
	defer h.hurry("cloud")()
	h.brings("aws-subscription-refused", "connector cloud", func() {}, func() {
		m.set("")
		b.Drop("")
	})
}

func (h *house) azureRefuses() {
	m := &moods{}
	b := northtest.NewBroker(h, m.options())
	secret := make([]byte, 32)
	hub := northtest.NewHub(h, secret)
	hub.Group = true
	h.write("group.key", pem.EncodeToMemory(&pem.Block{Type: "SECRET KEY", Bytes: secret}))
	fleet := fmt.Sprintf(`
[key.group]
uri = "file:group.key"
[connector.fleet]
type = "azure"
endpoint = "localhost:%s"
auth = "sas"
key = "group"
group = true
identities = "device"
ca = %q
[[uplink]]
name = "fleet"
resource = "/fleet/{kind}"
to = ["fleet"]
topic = "dt/{kind}"
`, portOf(hub.Addr), hub.CA.File(h))
	base := h.identity(b.CA) + shop + commands + fmt.Sprintf("[connector.cloud]\ntype = \"azure\"\nservice = \"eventgrid\"\nendpoint = \"localhost:%s\"\nkey = \"identity\"\nca = %q\n",
		portOf(b.Addr), b.CA.File(h))
	h.configure(base, fleet)
	m.set("no commands")
	h.start()
	defer h.hurry("cloud")()
	h.brings("azure-subscription-refused", "connector cloud", func() {}, func() {
		m.set("")
		b.Drop("")
	})
	h.brings("azure-devices-refused", "connector fleet",
		func() { h.report("stranger", "fleet/x", []byte("1")) },
		func() { h.reload(base) })
}

func (h *house) onem2mRefuses() {
	cse := northtest.NewCSE(h)
	url := cse.ServeHTTP()
	section := func(more string) string {
		return fmt.Sprintf("[connector.cloud]\ntype = \"onem2m\"\nurl = %q\ncse = \"/id-in/cse-in\"\nkey = \"identity\"\nca = %q\n%s\n", url, cse.CA.File(h), more)
	}
	base := h.identity(cse.CA) + shop + `
[device.meter-1]
groups = ["meter"]
[device.meter-2]
groups = ["meter"]
[[uplink]]
name = "sensors"
resource = "/sensors/{kind}"
to = ["cloud"]
topic = "{kind}"
`
	down := `
[[downlink]]
name = "set"
from = "cloud"
topic = "cmd/set/{device}"
resource = "/set"
`
	h.configure(base, section(""))
	h.start()
	eventually(h, "the gateway's AE to be there", func() bool { return cse.Has("cse-in/gw1") })
	cse.Put("gw1/cmd", map[string]any{"rn": "set", "con": "somebody else's"}) // no container, so nothing can be followed in it
	h.brings("onem2m-subscription-refused", "connector cloud",
		func() { h.reload(base, down, section("")) },
		func() { h.reload(base, strings.Replace(down, "cmd/set", "cmd/point", 1), section("")) })
	h.brings("group-refused", "connector cloud", func() {
		h.reload(base, section("ae_per_device = true\ngroups = [\"meter\"]"))
		eventually(h, "the gateway's AE to be there", func() bool { return cse.Has("cse-in/gw1") })
		cse.Put("gw1/meter", map[string]any{"con": "somebody else's"}) // a container has the group's name
		h.report("meter-1", "sensors/x", []byte("1"))
	}, func() {
		cse.Remove("cse-in/gw1/meter")
		h.report("meter-2", "sensors/x", []byte("1"))
	})
}
