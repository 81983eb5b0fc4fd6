package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/drawbridge/drawbridge/auth"
)

func (a *app) deviceVerb() *cobra.Command {
	var groups []string
	var psk, password bool
	add := &cobra.Command{
		Use:   "add NAME --psk | --password",
		Short: "Make a credential for a device: writes the gateway's half beside the configuration, prints the device's half and the TOML",
		Long: `Writes NAME.psk with a new random key of 128 bits, or NAME.password with the argon2id hash of a new random password, readable by
its owner alone. The device's half is printed once and kept nowhere. A file that is there already is never replaced.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if psk == password {
				return usage("device add: say either --psk or --password")
			}
			return a.addDevice(args[0], groups, psk)
		},
	}
	add.Flags().BoolVar(&psk, "psk", false, "for CoAP over DTLS")
	add.Flags().BoolVar(&password, "password", false, "for MQTT")
	add.Flags().StringSliceVar(&groups, "group", nil, "a group that the device belongs to; may be repeated")
	c := &cobra.Command{
		Use:   "device",
		Short: "Make credentials for devices",
		Args:  cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(c, args[0])
			}
			return c.Help()
		},
	}
	c.AddCommand(add)
	return c
}

func (a *app) addDevice(name string, groups []string, psk bool) error {
	if name == "" || strings.ContainsAny(name, "/\\\"\x00 \n") {
		return usage("device add: %q is no name for a device", name)
	}
	kind, secret, kept := "password", rand.Text(), ""
	if psk {
		key := make([]byte, 16)
		rand.Read(key)
		kind, secret = "psk", hex.EncodeToString(key)
		kept = "hex:" + secret + "\n"
	} else {
		kept = auth.HashPassword([]byte(secret)) + "\n"
	}
	file := filepath.Join(filepath.Dir(a.config()), name+"."+kind)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return hinted(fmt.Errorf("device add: %s is there already and was left as it is", file), "delete it first if the device is to have a new credential")
	}
	if err != nil {
		return fmt.Errorf("device add: %w", err)
	}
	if _, err := f.WriteString(kept); err != nil {
		return errors.Join(err, f.Close(), os.Remove(file))
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	fmt.Fprintf(a.err, "drawbridge: for the device, shown only now: %s %s\n", kind, secret)
	entry := fmt.Sprintf("\n[device.%s]\n", tomlKey(name))
	if len(groups) > 0 {
		entry += fmt.Sprintf("groups = [%s]\n", quotedList(groups))
	}
	_, err = fmt.Fprintf(a.out, "%s%s = %q\n", entry, kind, "file:"+filepath.Base(file))
	return err
}

// tomlKey gives a name as a key of a TOML table: bare where it can be.
func tomlKey(name string) string {
	if strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == "" {
		return name
	}
	return fmt.Sprintf("%q", name)
}

func quotedList(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = fmt.Sprintf("%q", w)
	}
	return strings.Join(quoted, ", ")
}
