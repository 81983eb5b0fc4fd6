package spool

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drawbridge/drawbridge/internal/msg"
)

const benchData = 256

// BenchmarkAppend measures acknowledged appends per second with many producers, each of which waits for its own,
// beside a loop that writes and flushes the same number of records at once with nothing else to do. One connector reads along.
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 32, 256, 1024} {
		b.Run(fmt.Sprintf("producers=%d", n), func(b *testing.B) {
			benchAppend(b, n, func(s *Spool, left *atomic.Int64) {
				told := make(chan error, 1)
				done := func(_ Pos, err error) { told <- err }
				r := benchRecord()
				for left.Add(-1) >= 0 {
					s.Append(Normal, &r, done)
					if err := <-told; err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkInFlight is the same for producers that append the next record when they are told of the last, without a goroutine each.
func BenchmarkInFlight(b *testing.B) {
	for _, n := range []int{1, 32, 256, 1024} {
		b.Run(fmt.Sprintf("records=%d", n), func(b *testing.B) {
			benchAppend(b, n, func(s *Spool, left *atomic.Int64) {
				end := make(chan struct{})
				r := benchRecord()
				var done func(Pos, error)
				done = func(_ Pos, err error) {
					if err != nil {
						b.Error(err)
					}
					if err != nil || left.Add(-1) < 0 {
						close(end)
					} else {
						s.Append(Normal, &r, done)
					}
				}
				s.Append(Normal, &r, done)
				<-end
			})
		})
	}
}

func benchRecord() Record {
	now := time.Now()
	return Record{ID: msg.NewID(now), Time: now, Route: "sensors", To: []string{"a"}, Data: make([]byte, benchData)}
}

func benchAppend(b *testing.B, producers int, produce func(*Spool, *atomic.Int64)) {
	raw := rawRate(b, producers)
	s, err := Open(b.TempDir(), Options{MaxSize: 16 << 30, DropOldest: true})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c := s.Consumer("a")
	go func() {
		for {
			list, err := c.Read(b.Context(), Low, 1000, 1<<20)
			if err != nil {
				return
			}
			for _, e := range list {
				c.Settle(e.Pos, Delivered)
			}
		}
	}()
	mustPut(b, s, Normal, benchRecord())
	before := s.Stats()
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ReportAllocs()
	b.ResetTimer()
	start := time.Now()
	var wg sync.WaitGroup
	for range producers {
		wg.Go(func() { produce(s, &left) })
	}
	wg.Wait()
	rate := float64(b.N) / time.Since(start).Seconds()
	after := s.Stats()
	b.ReportMetric(rate, "acks/s")
	b.ReportMetric(rate/raw, "of-raw")
	b.ReportMetric(float64(after.Written-before.Written)/float64(b.N), "octets/record")
	b.ReportMetric(float64(b.N)/float64(after.Commits-before.Commits), "records/commit")
}

// rawRate is what the disk gives: records per second where n of them are one write and one flush.
func rawRate(b *testing.B, n int) float64 {
	b.Helper()
	const size = 4 << 20
	f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, size)); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	commit := make([]byte, (n*(benchData+recordCost)+page-1)/page*page)
	start, records := time.Now(), 0
	for off := int64(0); time.Since(start) < time.Second; off += int64(len(commit)) {
		if off+int64(len(commit)) > size {
			off = 0
		}
		if _, err := f.WriteAt(commit, off); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
		records += n
	}
	return float64(records) / time.Since(start).Seconds()
}

// BenchmarkRead measures how fast a backlog is read and settled.
func BenchmarkRead(b *testing.B) {
	s, err := Open(b.TempDir(), Options{MaxSize: 16 << 30})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	var wg sync.WaitGroup
	r := Record{Time: time.Now(), Route: "sensors", To: []string{"a"}, Data: make([]byte, benchData)}
	for left := b.N; left > 0; left -= 1000 {
		for range min(left, 1000) {
			wg.Add(1)
			s.Append(Normal, &r, func(_ Pos, err error) {
				if err != nil {
					b.Error(err)
				}
				wg.Done()
			})
		}
		wg.Wait()
	}
	c := s.Consumer("a")
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		list, err := c.Read(b.Context(), Low, 1000, 1<<20)
		if err != nil {
			b.Fatal(err)
		}
		for _, e := range list {
			c.Settle(e.Pos, Delivered)
		}
		n += len(list)
	}
}
