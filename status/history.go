package status

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// point is what the plots show of one stretch of time.
type point struct {
	At      time.Time     // end of the stretch, to the second
	In      float32       // messages accepted per second, mean
	Out     float32       // messages delivered per second, mean
	Pending uint32        // messages waiting, most
	Latency time.Duration // to the slowest cloud, most; to the microsecond
}

// series keeps the last points at one distance.
type series struct {
	every  time.Duration
	keep   int
	points []point // oldest first, at most keep
	sum    point   // of the stretch that is not over yet
	n      int
	began  time.Time
}

// add takes a sample; it tells whether that ended a stretch.
func (s *series) add(p point) bool {
	if s.n == 0 {
		s.began = p.At
	}
	s.n++
	s.sum.In += p.In
	s.sum.Out += p.Out
	s.sum.Pending = max(s.sum.Pending, p.Pending)
	s.sum.Latency = max(s.sum.Latency, p.Latency)
	if p.At.Sub(s.began) < s.every {
		// A clock that went back starts the stretch again.
		if p.At.Before(s.began) {
			s.began = p.At
		}
		return false
	}
	s.sum.At = p.At
	s.sum.In /= float32(s.n)
	s.sum.Out /= float32(s.n)
	if len(s.points) == s.keep {
		s.points = slices.Delete(s.points, 0, 1)
	}
	s.points = append(s.points, s.sum)
	s.sum, s.n = point{}, 0
	return true
}

// history is what the plots show: the last hour and the last day. It survives a restart in a file of some 13 kB that is written every few minutes.
type history struct {
	path string // empty: kept in memory alone

	mu        sync.Mutex
	hour, day series // guarded by mu
}

// openHistory reads what an earlier run has left in the directory; damage costs the past, not the start.
func openHistory(dir string) (*history, error) {
	h := &history{hour: series{every: 10 * time.Second, keep: 360}, day: series{every: 5 * time.Minute, keep: 288}}
	if dir == "" {
		return h, nil
	}
	h.path = filepath.Join(dir, "history")
	data, err := os.ReadFile(h.path)
	if errors.Is(err, os.ErrNotExist) {
		return h, nil
	}
	if err == nil {
		err = h.decode(data)
	}
	if err != nil {
		err = fmt.Errorf("status: history: %w", err)
	}
	return h, err
}

// add takes a sample, one a second or so. It writes the file when a stretch of the day has ended.
func (h *history) add(p point) error {
	h.mu.Lock()
	h.hour.add(p)
	save := h.day.add(p)
	h.mu.Unlock()
	if save {
		return h.save()
	}
	return nil
}

// lastHour and lastDay give the points, oldest first.
func (h *history) lastHour() []point { return h.copy(&h.hour) }
func (h *history) lastDay() []point  { return h.copy(&h.day) }

func (h *history) copy(s *series) []point {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(s.points)
}

func (h *history) save() error {
	if h.path == "" {
		return nil
	}
	// No flush: after a power cut the older file or none will do.
	if err := os.WriteFile(h.path+".new", h.encode(), 0o600); err != nil {
		return fmt.Errorf("status: history: %w", err)
	}
	if err := os.Rename(h.path+".new", h.path); err != nil {
		return fmt.Errorf("status: history: %w", err)
	}
	return nil
}

const (
	historyMagic = "dbhist1\n"
	pointSize    = 20
)

// rawPoint is a point in the file, big endian.
type rawPoint struct {
	At      uint32
	In, Out float32
	Pending uint32
	Latency uint32 // microseconds
}

// encode writes magic, then for each series a count and its points, then the CRC-32 of all that.
func (h *history) encode() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := []byte(historyMagic)
	for _, s := range []*series{&h.hour, &h.day} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s.points)))
		for _, p := range s.points {
			// Append cannot fail: rawPoint has a fixed size.
			b, _ = binary.Append(b, binary.BigEndian, rawPoint{uint32(p.At.Unix()), p.In, p.Out, p.Pending, uint32(p.Latency.Microseconds())})
		}
	}
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

var errDamaged = errors.New("file is damaged")

func (h *history) decode(b []byte) error {
	if len(b) < len(historyMagic)+4 || string(b[:len(historyMagic)]) != historyMagic {
		return errDamaged
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.ChecksumIEEE(body) != sum {
		return errDamaged
	}
	body = body[len(historyMagic):]
	var read [2][]point
	for i, keep := range []int{h.hour.keep, h.day.keep} {
		if len(body) < 4 {
			return errDamaged
		}
		n := int(binary.BigEndian.Uint32(body))
		body = body[4:]
		if n > keep || len(body) < n*pointSize {
			return errDamaged
		}
		for range n {
			var r rawPoint
			if _, err := binary.Decode(body, binary.BigEndian, &r); err != nil {
				return errDamaged
			}
			body = body[pointSize:]
			read[i] = append(read[i], point{time.Unix(int64(r.At), 0), r.In, r.Out, r.Pending, time.Duration(r.Latency) * time.Microsecond})
		}
	}
	if len(body) > 0 {
		return errDamaged
	}
	h.hour.points, h.day.points = read[0], read[1]
	return nil
}
