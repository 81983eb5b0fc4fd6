package mqtt

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// The reason codes that a wrong packet is answered with (MQTT 5 section 2.4).
const (
	malformed = byte(packet.MalformedPacket)
	violation = byte(packet.ProtocolError)
)

// wrong is one thing that a client may not send after CONNECT, as the octets of either version; empty where the version has no such thing. In MQTT 5
// the answer is a DISCONNECT with the code; in 3.1.1 the connection is closed without a word.
type wrong struct {
	v311, v5 string
	code     byte
}

var wrongs = map[string]wrong{
	"type 0":                              {"\x00\x00", "\x00\x00", malformed},
	"remaining length of five octets":     {"\xc0\x80\x80\x80\x80\x01", "\xc0\x80\x80\x80\x80\x01", malformed},
	"a packet larger than the maximum":    {"\x30\x80\x80\x80\x01", "\x30\x80\x80\x80\x01", 0x95},
	"a second CONNECT":                    {"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x", "\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01x", violation},
	"a second CONNECT that is cut short":  {"\x10\x00", "\x10\x00", violation},
	"CONNACK from a client":               {"\x20\x02\x00\x00", "\x20\x03\x00\x00\x00", violation},
	"PUBLISH with QoS 3":                  {"\x36\x05\x00\x01a\x00\x01", "\x36\x06\x00\x01a\x00\x01\x00", malformed},
	"PUBLISH with QoS 0 and DUP":          {"\x38\x03\x00\x01a", "\x38\x04\x00\x01a\x00", malformed},
	"PUBLISH with half a topic":           {"\x30\x03\x00\x05a", "\x30\x03\x00\x05a", malformed},
	"PUBLISH without an identifier":       {"\x32\x03\x00\x01a", "\x32\x03\x00\x01a", malformed},
	"PUBLISH with identifier 0":           {"\x32\x05\x00\x01a\x00\x00", "\x32\x06\x00\x01a\x00\x00\x00", malformed},
	"PUBLISH without a topic":             {"\x30\x02\x00\x00", "\x30\x03\x00\x00\x00", violation},
	"PUBLISH to a wildcard":               {"\x30\x05\x00\x03a/#", "\x30\x06\x00\x03a/#\x00", 0x90},
	"PUBLISH with a topic not UTF-8":      {"\x30\x04\x00\x02a\xff", "\x30\x05\x00\x02a\xff\x00", malformed},
	"PUBLISH with U+0000 in its topic":    {"\x30\x04\x00\x02a\x00", "\x30\x05\x00\x02a\x00\x00", malformed},
	"PUBLISH with a property of others":   {"", "\x30\x07\x00\x01a\x03\x21\x00\x01", violation},
	"PUBLISH with a property twice":       {"", "\x30\x08\x00\x01a\x04\x01\x00\x01\x00", violation},
	"PUBLISH with alias 0":                {"", "\x30\x07\x00\x01a\x03\x23\x00\x00", 0x94},
	"PUBLISH with an alias too high":      {"", "\x30\x07\x00\x01a\x03\x23\xff\xff", 0x94},
	"PUBLISH with an unknown alias":       {"", "\x30\x06\x00\x00\x03\x23\x00\x09", 0x94},
	"PUBLISH with properties too long":    {"", "\x30\x05\x00\x01a\x7f\x01", malformed},
	"PUBLISH with a subscription's id":    {"", "\x30\x06\x00\x01a\x02\x0b\x01", violation},
	"PUBACK without an identifier":        {"\x40\x00", "\x40\x00", malformed},
	"PUBACK with identifier 0":            {"\x40\x02\x00\x00", "\x40\x02\x00\x00", malformed},
	"PUBACK with flags":                   {"\x42\x02\x00\x01", "\x42\x02\x00\x01", malformed},
	"PUBACK with more than belongs to it": {"\x40\x03\x00\x01\x00", "\x40\x06\x00\x01\x00\x00\x00\x00", malformed},
	"PUBACK with a property of others":    {"", "\x40\x07\x00\x01\x00\x03\x23\x00\x01", violation},
	"PUBREC without an identifier":        {"\x50\x01\x00", "\x50\x01\x00", malformed},
	"PUBREC with flags":                   {"\x52\x02\x00\x01", "\x52\x02\x00\x01", malformed},
	"PUBREL without its flags":            {"\x60\x02\x00\x01", "\x60\x02\x00\x01", malformed},
	"PUBREL without an identifier":        {"\x62\x00", "\x62\x00", malformed},
	"PUBCOMP with identifier 0":           {"\x70\x02\x00\x00", "\x70\x02\x00\x00", malformed},
	"PUBCOMP with flags":                  {"\x71\x02\x00\x01", "\x71\x02\x00\x01", malformed},
	"SUBSCRIBE without its flags":         {"\x80\x06\x00\x01\x00\x01a\x00", "\x80\x07\x00\x01\x00\x00\x01a\x00", malformed},
	"SUBSCRIBE without filters":           {"\x82\x02\x00\x01", "\x82\x03\x00\x01\x00", violation},
	"SUBSCRIBE with identifier 0":         {"\x82\x06\x00\x00\x00\x01a\x00", "\x82\x07\x00\x00\x00\x00\x01a\x00", malformed},
	"SUBSCRIBE with QoS 3":                {"\x82\x06\x00\x01\x00\x01a\x03", "\x82\x07\x00\x01\x00\x00\x01a\x03", malformed},
	"SUBSCRIBE without options":           {"\x82\x05\x00\x01\x00\x01a", "\x82\x06\x00\x01\x00\x00\x01a", malformed},
	"SUBSCRIBE with reserved options":     {"\x82\x06\x00\x01\x00\x01a\x04", "\x82\x07\x00\x01\x00\x00\x01a\xc0", malformed},
	"SUBSCRIBE with retain handling 3":    {"", "\x82\x07\x00\x01\x00\x00\x01a\x30", violation},
	"SUBSCRIBE shared without local":      {"", "\x82\x10\x00\x01\x00\x00\x0a$share/g/a\x04", violation},
	"SUBSCRIBE with identifier of sub 0":  {"", "\x82\x09\x00\x01\x02\x0b\x00\x00\x01a\x00", violation},
	"SUBACK from a client":                {"\x90\x03\x00\x01\x00", "\x90\x04\x00\x01\x00\x00", violation},
	"UNSUBSCRIBE without its flags":       {"\xa0\x05\x00\x01\x00\x01a", "\xa0\x06\x00\x01\x00\x00\x01a", malformed},
	"UNSUBSCRIBE without filters":         {"\xa2\x02\x00\x01", "\xa2\x03\x00\x01\x00", violation},
	"UNSUBSCRIBE with half a filter":      {"\xa2\x05\x00\x01\x00\x09a", "\xa2\x06\x00\x01\x00\x00\x09a", malformed},
	"UNSUBACK from a client":              {"\xb0\x02\x00\x01", "\xb0\x04\x00\x01\x00\x00", violation},
	"PINGREQ with a body":                 {"\xc0\x01\x00", "\xc0\x01\x00", malformed},
	"PINGREQ with flags":                  {"\xc1\x00", "\xc1\x00", malformed},
	"PINGRESP from a client":              {"\xd0\x00", "\xd0\x00", violation},
	"DISCONNECT with flags":               {"\xe1\x00", "\xe1\x00", malformed},
	"DISCONNECT with more than belongs":   {"\xe0\x01\x00", "\xe0\x03\x00\x00\x00", malformed},
	"DISCONNECT with a server reference":  {"", "\xe0\x06\x00\x04\x1c\x00\x01x", violation},
	"DISCONNECT that revives the session": {"", "\xe0\x07\x00\x05\x11\x00\x00\x00\x09", violation},
	"AUTH that was not agreed on":         {"\xf0\x00", "\xf0\x00", violation},
	"AUTH with flags":                     {"\xf1\x00", "\xf1\x00", malformed},
	"AUTH cut short":                      {"", "\xf0\x02\x19\x05", malformed},
}

// wrongHellos are CONNECTs that are answered with a CONNACK of the code, in the version that they are in, or, with 0, by closing.
var wrongHellos = map[string]struct {
	octets string
	code   byte
}{
	"another packet first":                  {"\xc0\x00", 0},
	"not MQTT":                              {"GET / HTTP/1.1\r\n\r\n", 0},
	"another protocol":                      {"\x10\x0a\x00\x04HTTP\x05\x00\x00\x00", 0x84},
	"a name cut short":                      {"\x10\x04\x00\x09MQ", 0},
	"3.1.1 with the reserved flag":          {"\x10\x0d\x00\x04MQTT\x04\x03\x00\x3c\x00\x01x", 0},
	"3.1.1 with a password and no user":     {"\x10\x10\x00\x04MQTT\x04\x42\x00\x3c\x00\x01x\x00\x01p", 0},
	"3.1.1 with no id and a session":        {"\x10\x0c\x00\x04MQTT\x04\x00\x00\x3c\x00\x00", 2},
	"version 3":                             {"\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x00", 1},
	"5 with the reserved flag":              {"\x10\x0e\x00\x04MQTT\x05\x03\x00\x3c\x00\x00\x01x", malformed},
	"5 with will QoS and no will":           {"\x10\x0e\x00\x04MQTT\x05\x0a\x00\x3c\x00\x00\x01x", malformed},
	"5 with a will on a wildcard":           {"\x10\x15\x00\x04MQTT\x05\x06\x00\x3c\x00\x00\x01x\x00\x00\x01#\x00\x01w", 0x90},
	"5 with receive maximum 0":              {"\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x03\x21\x00\x00\x00\x01x", violation},
	"5 with maximum packet size 0":          {"\x10\x13\x00\x04MQTT\x05\x02\x00\x3c\x05\x27\x00\x00\x00\x00\x00\x01x", violation},
	"5 with a property twice":               {"\x10\x18\x00\x04MQTT\x05\x02\x00\x3c\x0a\x11\x00\x00\x00\x01\x11\x00\x00\x00\x01\x00\x01x", violation},
	"5 with data of no method":              {"\x10\x12\x00\x04MQTT\x05\x02\x00\x3c\x04\x16\x00\x01x\x00\x01x", violation},
	"5 with a client id that is not UTF-8":  {"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01\xff", malformed},
	"5 with something after the end":        {"\x10\x0f\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01xy", malformed},
	"5 with a method that is not spoken":    {"\x10\x13\x00\x04MQTT\x05\x02\x00\x3c\x05\x15\x00\x02NO\x00\x01x", 0x8c},
	"5 with properties longer than all":     {"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x7f\x00\x01x", malformed},
	"version 6":                             {"\x10\x0e\x00\x04MQTT\x06\x02\x00\x3c\x00\x00\x01x", 0x84},
	"larger than anything before log-in is": {"\x10\x80\x80\x80\x01", 0},
}

// TestWrongPackets sends everything that a client may not send. It costs the connection, with the right code, and nobody else anything.
func TestWrongPackets(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	bystander, _ := connect5(t, b, "bystander", nil)
	bystander.subscribe("calm", 1)
	for name, c := range wrongs {
		for version, octets := range map[packet.Version]string{packet.V311: c.v311, packet.V5: c.v5} {
			if octets == "" {
				continue
			}
			t.Run(fmt.Sprintf("%s in %d", name, version), func(t *testing.T) {
				w := open(t, b)
				if version == packet.V5 {
					w.send(&packets5.Connect{ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: "w", CleanStart: true, Properties: &packets5.Properties{}})
					expect[*packets5.Connack](w)
					w.raw(octets)
					w.closed(c.code)
					return
				}
				w.raw("\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01w")
				var ack [4]byte
				w.nc.SetReadDeadline(time.Now().Add(patience))
				if _, err := io.ReadFull(w.nc, ack[:]); err != nil || string(ack[:]) != "\x20\x02\x00\x00" {
					t.Fatalf("CONNACK %q, %v", ack, err)
				}
				w.raw(octets)
				w.closed(0)
			})
		}
	}
	for name, c := range wrongHellos {
		t.Run("CONNECT: "+name, func(t *testing.T) {
			w := open(t, b)
			w.raw(c.octets)
			w.nc.SetReadDeadline(time.Now().Add(patience))
			got, err := io.ReadAll(w.nc)
			if err != nil && !strings.Contains(err.Error(), "reset") {
				t.Fatal(err)
			}
			switch {
			case c.code == 0 && len(got) > 0:
				t.Errorf("heard %q, want nothing", got)
			case c.code > 0 && (len(got) < 4 || got[0] != 0x20 || got[3] != c.code):
				t.Errorf("heard %q, want a CONNACK with 0x%02x", got, c.code)
			}
		})
	}
	bystander.publish("calm", "after the storm", 1, 1, nil)
	bystander.hears("calm", "after the storm")
}
