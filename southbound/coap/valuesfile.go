package coap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// Last values outlive the process in a file of changes, each with its length and a checksum. They are written once a second, all that has
// changed since at a time: after a kill a value may be a second older than the last report, after a power cut as old as what the kernel had
// not written yet. What follows a damaged change is dropped. The file is written anew when most of it is of the past.

const (
	valuesFile    = "values"
	valuesEvery   = time.Second
	valuesSlack   = 1 << 20 // octets of the past that are not worth a new file
	maxValueFrame = 1 << 28
)

type valueKey struct{ device, resource string }

// keptValue is a change. The numbers are its format on disk.
type keptValue struct {
	Device   string `cbor:"1,keyasint"`
	Resource string `cbor:"2,keyasint"`
	Format   int    `cbor:"3,keyasint"`
	Payload  []byte `cbor:"4,keyasint"`
	Gone     bool   `cbor:"5,keyasint,omitempty"`
}

// appendFrame appends the change.
func (k *keptValue) appendFrame(dst []byte) ([]byte, error) {
	body, err := cbor.Marshal(k)
	if err != nil {
		return dst, err
	}
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(body)))
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
	return append(dst, body...), nil
}

// replay takes the changes of a file and gives how many of its octets are sound.
func (vs *values) replay(data []byte) (sound int) {
	table := crc32.MakeTable(crc32.Castagnoli)
	for rest := data; len(rest) >= 8; {
		n := binary.LittleEndian.Uint32(rest)
		if n > maxValueFrame || int(n) > len(rest)-8 {
			break
		}
		body := rest[8 : 8+n]
		var k keptValue
		if crc32.Checksum(body, table) != binary.LittleEndian.Uint32(rest[4:]) || cbor.Unmarshal(body, &k) != nil {
			break
		}
		if k.Gone {
			vs.remove(vs.byDevice[k.Device][k.Resource])
		} else {
			vs.set(k.Device, k.Resource, k.Format, k.Payload)
		}
		rest = rest[8+n:]
		sound = len(data) - len(rest)
	}
	return sound
}

// valueLog is the open file.
type valueLog struct {
	root    *os.Root
	f       *os.File
	size    int
	damaged bool // a write has failed
}

// restoreValues takes up the last values of the last run. It gives nil where they cannot be kept.
func (l *listener) restoreValues() *valueLog {
	v, err := l.openValues()
	if err != nil {
		l.env.Log.Error("last values are not kept", "err", err)
	}
	return v
}

func (l *listener) openValues() (*valueLog, error) {
	root, err := os.OpenRoot(l.env.State)
	if err != nil {
		return nil, err
	}
	f, err := root.OpenFile(valuesFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	v := &valueLog{root: root, f: f}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, errors.Join(err, v.close())
	}
	l.mu.Lock()
	v.size = l.values.replay(data)
	l.values.changed = map[valueKey]struct{}{}
	l.mu.Unlock()
	if err := f.Truncate(int64(v.size)); err != nil {
		return nil, errors.Join(err, v.close())
	}
	return v, nil
}

func (v *valueLog) close() error { return errors.Join(v.f.Close(), v.root.Close()) }

// keepValues writes what changes until ctx ends, and what is left then.
func (l *listener) keepValues(ctx context.Context, v *valueLog) {
	if v == nil {
		return
	}
	defer func() {
		if err := errors.Join(l.flushValues(v), v.f.Sync(), v.close()); err != nil {
			l.env.Log.Error("last values are not kept", "err", err)
		}
		l.mu.Lock()
		l.values.changed = nil
		l.mu.Unlock()
	}()
	ticker := time.NewTicker(valuesEvery)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := l.flushValues(v)
		if err != nil && !failing {
			l.env.Log.Error("last values are not kept", "err", err)
		}
		failing = err != nil
	}
}

// flushValues writes what has changed since it was last called.
func (l *listener) flushValues(v *valueLog) error {
	var changes []byte
	var failed error
	l.mu.Lock()
	vs := &l.values
	anew := v.damaged || v.size > 2*vs.size+valuesSlack
	put := func(key valueKey) {
		k := keptValue{Device: key.device, Resource: key.resource, Gone: true}
		if e := vs.get(key.device, key.resource); e != nil {
			k = keptValue{Device: key.device, Resource: key.resource, Format: e.format, Payload: e.payload}
		}
		b, err := k.appendFrame(changes)
		if err != nil {
			failed = fmt.Errorf("%q: %w", key.resource, err)
		}
		changes = b
	}
	if anew {
		for e := vs.order.Back(); e != nil; e = e.Prev() {
			w := e.Value.(*value)
			put(valueKey{w.device, w.resource})
		}
	} else {
		for key := range vs.changed {
			put(key)
		}
	}
	clear(vs.changed)
	l.mu.Unlock()
	if anew {
		return errors.Join(failed, v.replace(changes))
	}
	if len(changes) == 0 {
		return failed
	}
	n, err := v.f.WriteAt(changes, int64(v.size))
	v.size, v.damaged = v.size+n, err != nil
	return errors.Join(failed, err)
}

// replace puts a new file in the place of the old one.
func (v *valueLog) replace(data []byte) error {
	if err := writeFile(v.root, valuesFile, data); err != nil {
		return err
	}
	f, err := v.root.OpenFile(valuesFile, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = v.f.Close()
	v.f, v.size, v.damaged = f, len(data), false
	return err
}
