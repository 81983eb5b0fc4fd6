package hwcrypto

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseURI(t *testing.T) {
	slot := uint(3)
	for in, want := range map[string]URI{
		"pkcs11:token=gw;object=identity?pin-source=file:/etc/drawbridge/pin": {Scheme: "pkcs11", Token: "gw", Object: "identity", PINSource: "file:/etc/drawbridge/pin"},
		"pkcs11:token=gw;object=a?pin-source=file:pin":                        {Scheme: "pkcs11", Token: "gw", Object: "a", PINSource: "file:/base/pin"},
		"pkcs11:token=gw;object=a?pin-source=file:///etc/pin":                 {Scheme: "pkcs11", Token: "gw", Object: "a", PINSource: "file:/etc/pin"},
		"pkcs11:object=a?pin-source=credential:pin&module-name=softhsm2":      {Scheme: "pkcs11", Object: "a", PINSource: "credential:pin", ModuleName: "softhsm2"},
		"pkcs11:object=a?module-path=lib/x.so":                                {Scheme: "pkcs11", Object: "a", ModulePath: "/base/lib/x.so"},
		"pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;serial=4d;object=my%3Bkey;type=private;id=%69%95%3E%5C%F4%BD%EC%91": {
			Scheme: "pkcs11", Token: "The Software PKCS#11 Softtoken", Manufacturer: "Snake Oil, Inc.", Model: "1.0", Serial: "4d", Object: "my;key",
			Type: "private", ID: []byte("\x69\x95\x3e\x5c\xf4\xbd\xec\x91")},
		"pkcs11:slot-id=3;id=abc":                  {Scheme: "pkcs11", SlotID: &slot, ID: []byte("abc")},
		"pkcs11:id=%00%01":                         {Scheme: "pkcs11", ID: []byte{0, 1}},
		"tpm:name=hub":                             {Scheme: "tpm", Name: "hub"},
		"tpm:handle=0x81010002;device=/dev/tpmrm0": {Scheme: "tpm", Handle: 0x81010002, Device: "/dev/tpmrm0"},
		"tpm:name=hub;device=unix:/run/swtpm.sock": {Scheme: "tpm", Name: "hub", Device: "unix:/run/swtpm.sock"},
		"tpm:name=hub;device=unix:swtpm.sock":      {Scheme: "tpm", Name: "hub", Device: "unix:/base/swtpm.sock"},
		"file:dev.key":                             {Scheme: "file", Path: "/base/dev.key"},
		"file:/etc/drawbridge/../dev key.pem":      {Scheme: "file", Path: "/etc/dev key.pem"},
		"file:///etc/drawbridge/dev.key":           {Scheme: "file", Path: "/etc/drawbridge/dev.key"},
	} {
		got, err := ParseURI(in, "/base")
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", in, got, want)
		}
		again, err := ParseURI(got.String(), "/elsewhere")
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%s: its canonical form %s reads as %+v, %v", in, got, again, err)
		}
	}
}

func TestParseURIMistakes(t *testing.T) {
	for in, want := range map[string]string{
		"":                                            "want pkcs11:…, tpm:… or file:…",
		"identity":                                    "want pkcs11:…, tpm:… or file:…",
		"yubikey:slot=9a":                             `unknown scheme "yubikey"`,
		"pkcs11:":                                     "want name=value",
		"pkcs11:token=gw":                             "object or id is missing",
		"pkcs11:token=gw;object=a;":                   "want name=value",
		"pkcs11:token=gw;object=a;object=b":           `attribute "object" stands twice`,
		"pkcs11:token=gw;objekt=a":                    `unknown attribute "objekt"`,
		"pkcs11:token=;object=a":                      "token is empty",
		"pkcs11:token=g w;object=a":                   "must be written %20",
		"pkcs11:token=gw%2;object=a":                  "ends within a percent escape",
		"pkcs11:token=gw%zz;object=a":                 "no percent escape",
		"pkcs11:token=gw%00;object=a":                 "zero octet",
		"pkcs11:object=a;type=cert":                   "is no key",
		"pkcs11:object=a;slot-id=x":                   "is not a number",
		"pkcs11:object=a?pin-source=/etc/pin":         "want file:/path or credential:NAME",
		"pkcs11:object=a?pin-source=credential:../x":  "not the name of a credential",
		"pkcs11:object=a?pin-source=file://host/pin":  "names a host",
		"pkcs11:object=a?pin-source=|cat%20/etc/pin":  "want file:/path or credential:NAME",
		"pkcs11:object=a?module-name=../x":            "is a path",
		"pkcs11:object=a?pin-source=file:/p&token=gw": `unknown attribute "token"`,
		"tpm:":                                "want name=value",
		"tpm:name=hub;handle=0x81000001":      "want one of",
		"tpm:device=/dev/tpm0":                "want one of",
		"tpm:name=../hub":                     "want letters",
		"tpm:name=.hub":                       "want letters",
		"tpm:name=" + strings.Repeat("n", 65): "want letters",
		"tpm:handle=0x80000000":               "not a persistent handle",
		"tpm:handle=0x181000000":              "not a persistent handle",
		"file:":                               "path is empty",
		"file://host/key":                     "names a host",
		"file:a\x00b":                         "zero octet",
	} {
		if u, err := ParseURI(in, "/base"); err == nil {
			t.Errorf("%q reads as %+v", in, u)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", in, err, want)
		}
	}
}

func TestPINValueIsRefusedAndNotRepeated(t *testing.T) {
	_, err := ParseURI("pkcs11:object=a?pin-value=83715", "/")
	if err == nil || !strings.Contains(err.Error(), "pin-source=file:") || strings.Contains(err.Error(), "83715") {
		t.Fatal(err)
	}
}

func TestDecodeSecret(t *testing.T) {
	for in, want := range map[string]string{
		"secret": "secret", "secret\n": "secret", "secret\r\n": "secret", "secret\n\n": "secret\n", "hex:00ff\n": "\x00\xff", "base64:AP8=\n": "\x00\xff",
	} {
		got, err := DecodeSecret([]byte(in))
		if err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "\n", "hex:", "hex:0", "hex:0g0g", "base64:AP8", "base64:*secret*"} {
		if got, err := DecodeSecret([]byte(in)); err == nil {
			t.Errorf("%q reads as %q", in, got)
		} else if strings.Contains(err.Error(), "g0g") || strings.Contains(err.Error(), "*") {
			t.Errorf("%q: the error repeats it: %v", in, err)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	for _, s := range []string{"pkcs11:token=gw;object=a;id=%01?pin-source=file:/p&module-name=m", "tpm:name=hub;device=unix:/s", "tpm:handle=0x81000001", "file:k"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURI(s, "/base")
		if err != nil {
			return
		}
		again, err := ParseURI(u.String(), "/other")
		if err != nil || !reflect.DeepEqual(again, u) {
			t.Fatalf("%q reads as %+v, whose form %q reads as %+v, %v", s, u, u.String(), again, err)
		}
	})
}
