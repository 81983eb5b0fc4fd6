package config_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/config"
)

var update = flag.Bool("update", false, "write the messages anew instead of comparing")

// badSite makes a directory with the secret files that the bad files name.
func badSite(t *testing.T) string {
	t.Helper()
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "keys/one.psk", "sesame", 0o600)
	write(t, dir, "keys/open.psk", "sesame", 0o644)
	write(t, dir, "keys/open.key", "", 0o640)
	write(t, dir, "keys/open.pin", "1234", 0o604)
	write(t, dir, "keys/bad-hex.psk", "hex:0g", 0o600)
	write(t, dir, "keys/long.psk", strings.Repeat("x", 65), 0o600)
	write(t, dir, "keys/empty", "\n", 0o600)
	write(t, dir, "keys/md5", "$1$abcdefgh$G//4keteveJp0qb8z2DxG/", 0o600)
	write(t, dir, "keys/ca-garbage.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0o644)
	write(t, dir, "keys/private.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0o600)
	write(t, dir, "keys/text.pem", "no certificate", 0o644)
	return dir
}

// Each file of testdata/bad gives exactly the messages of the .txt beside it.
func TestBadFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.toml")
	if err != nil || len(files) < 15 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".toml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			dir := badSite(t)
			_, err = config.Parse(filepath.Join(dir, filepath.Base(file)), data, kinds)
			if err == nil {
				t.Fatal("it is taken")
			}
			got := strings.ReplaceAll(err.Error(), dir+"/", "") + "\n"
			golden := strings.TrimSuffix(file, ".toml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}
