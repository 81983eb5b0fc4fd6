package config

import (
	"bytes"
	_ "embed"
)

//go:embed example.toml
var example []byte

// Example gives a complete configuration file with every default shown.
func Example() []byte { return bytes.Clone(example) }
