// Package spool is the durable queue between the edges: a log on disk that is written once per record, with a cursor for each
// connector that the record is for.
//
// What always holds:
//   - Append completes without error only after the record is on disk (one write and one fdatasync for all that are waiting).
//   - After kill -9 or a power cut every such record is read again by each consumer that had not settled it. Open never refuses
//     because of what a crash or a bad sector left behind: it counts what is gone and says so.
//   - For each route and connector, accepted = delivered + expired + dead + pending, exact across restarts.
//   - A consumer reads records of one class in the order in which they were appended.
//   - A full disk or quota is an answer (ErrFull), and it ends by itself when there is room again.
package spool

import (
	"errors"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
)

// Class is a priority. Each class is a log of its own; consumers read higher classes first.
type Class uint8

// The classes, in the order in which they are read.
const (
	High Class = iota
	Normal
	Low
	classes
)

// Pos is where a record stands.
type Pos struct {
	Class Class
	Seq   uint64
}

// Record is what is appended. Append copies all of it before it returns.
type Record struct {
	ID      msg.ID
	Time    time.Time // when it was accepted; kept to the millisecond
	Expires time.Time // zero: by Options.MaxAge alone
	Route   string
	To      []string // the connectors it is for; at least one
	Data    []byte   // opaque to the spool
}

// Entry is a record as a consumer reads it. It is valid until it is settled.
type Entry struct {
	Pos     Pos
	ID      msg.ID
	Time    time.Time
	Expires time.Time
	Route   string
	Data    []byte
}

// Outcome is how a consumer settles an entry.
type Outcome uint8

// The outcomes that the ledger counts.
const (
	Delivered Outcome = iota + 1
	Expired
	Dead
)

// Options bound the spool. Zero values are the defaults of the configuration.
type Options struct {
	MaxSize    int64         // octets of all classes together; default 1 GiB
	MaxAge     time.Duration // default 168 h
	DropOldest bool          // make room by expiring the oldest, counted, instead of ErrFull
	Share      int64         // octets that one consumer may leave pending before appends for it alone are refused; default 3/4 of MaxSize, or of the file system where that is smaller
	Segment    int64         // octets of a segment; default 4 MiB, less where MaxSize or the file system is small; a record takes half of it at most
	Align      int           // commits are aligned to so many octets; default 4096
	Linger     time.Duration // how long an idle spool waits for company before it writes, to spare flash; default 0
	Now        func() time.Time
	Correct    func(time.Time) time.Time // gives what a time that Now gave stands for, where the clock was set since; nil: it never is
}

// Tally is one line of the ledger. Accepted = Delivered + Expired + Dead + Pending, always.
type Tally struct {
	Route     string `json:"route"`
	Connector string `json:"connector"`
	Accepted  uint64 `json:"accepted"`
	Delivered uint64 `json:"delivered"`
	Expired   uint64 `json:"expired"` // by ttl, max_age or drop-oldest
	Dead      uint64 `json:"dead"`    // also what media damage has taken, see Stats.Lost
	Pending   uint64 `json:"pending"`
}

// Stats is the state of the spool.
type Stats struct {
	Bytes        int64            `json:"bytes"` // on disk
	MaxBytes     int64            `json:"max_bytes"`
	Records      uint64           `json:"records"` // pending; one that two connectors need counts twice
	Oldest       time.Time        `json:"oldest"`  // of the oldest pending record; zero where none
	Full         bool             `json:"full"`
	Lost         uint64           `json:"lost"`    // records that media damage has taken, as far as they can be counted
	Dropped      uint64           `json:"dropped"` // by drop-oldest
	Commits      uint64           `json:"commits"`
	Written      int64            `json:"written_bytes"`  // octets written to disk since start
	SyncNanos    []uint64         `json:"sync_histogram"` // commits by duration: [i] of less than 1<<i ns and not less than half of that
	PendingBytes map[string]int64 `json:"pending_bytes"`  // by connector
}

// ErrFull: there is no room, on the disk, in max_size or in a connector's share. The record was not taken.
var ErrFull = errors.New("spool is full")

// ErrAmbiguous: the disk failed while the record was being written. It may or may not be there; append it again with the same ID.
var ErrAmbiguous = errors.New("spool: the disk failed during the write")

// ErrClosed: the spool is closed.
var ErrClosed = errors.New("spool is closed")
