package config

import (
	"crypto/sha256"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
)

// uses notes that the component depends on [key.NAME].
func (c *Component) uses(key string) {
	if key != "" && !slices.Contains(c.keys, key) {
		c.keys = append(c.keys, key)
	}
}

// Value gives what the component's own key holds, nil where its type has no such key: for those who know a key by its name alone,
// as "device_crl".
func (c *Component) Value(key string) any {
	if c.Own == nil {
		return nil
	}
	if f, ok := fields(reflect.ValueOf(c.Own).Elem(), map[string]reflect.Value{})[key]; ok {
		return f.Interface()
	}
	return nil
}

// Equal tells whether a component would work the same after a reload: its type, its own keys, the [key]s that it names and the content of
// the files that it names are the same. Revocation lists and the certificates of keys do not count: they are read anew while it runs.
func (c *Component) Equal(o *Component) bool {
	return c != nil && o != nil && c.Name == o.Name && c.Type == o.Type && c.files == o.files && reflect.DeepEqual(c.Own, o.Own)
}

// fingerprint notes the content of the files on which each component depends.
func (c *Config) fingerprint() {
	for _, m := range []map[string]*Component{c.Listeners, c.Connectors} {
		for _, comp := range m {
			h := sha256.New()
			files(reflect.ValueOf(comp.Own), func(path string) { digest(h, path) })
			slices.Sort(comp.keys)
			for _, name := range comp.keys {
				k := c.Keys[name]
				io.WriteString(h, name+"\x00"+k.URI+"\x00"+string(k.Module)+"\x00"+string(k.Cert)+"\x00")
			}
			h.Sum(comp.files[:0])
		}
	}
}

// digest adds path and its content to h. A file that cannot be read counts as absent.
func digest(h io.Writer, path string) {
	io.WriteString(h, path+"\x00")
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return
	}
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	own := sha256.New()
	if _, err := io.Copy(own, io.LimitReader(f, maxFile)); err == nil {
		h.Write(own.Sum(nil))
	}
}

// files calls yield for every file that a Path or SecretRef within v names.
func files(v reflect.Value, yield func(path string)) {
	switch {
	case v.Type() == pathType:
		yield(v.String())
	case v.Type() == secretType:
		if path, err := SecretRef(v.String()).file(); err == nil {
			yield(path)
		}
	case v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface:
		if !v.IsNil() {
			files(v.Elem(), yield)
		}
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			// Revocation lists are read again while the component runs.
			if !strings.HasSuffix(v.Type().Field(i).Tag.Get("toml"), "crl") {
				files(v.Field(i), yield)
			}
		}
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			files(v.Index(i), yield)
		}
	case v.Kind() == reflect.Map:
		for _, k := range slices.SortedFunc(slices.Values(v.MapKeys()), func(a, b reflect.Value) int {
			return strings.Compare(a.String(), b.String())
		}) {
			files(v.MapIndex(k), yield)
		}
	}
}
