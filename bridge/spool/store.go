package spool

import "context"

// Spool is an open queue. Its methods may be called from any goroutine.
type Spool struct{}

// Open opens the spool in dir, or makes it.
func Open(dir string, o Options) (*Spool, error) { return &Spool{}, nil }

// Append takes r for the connectors in r.To. It copies r and returns at once. done is called exactly once: with nil after r is on
// disk, else with the reason for which it was not taken (ErrFull, ErrClosed, ErrAmbiguous, or what is wrong with r), and then
// perhaps before Append returns. It must not block for long and must not hold a lock under which Append is called.
func (s *Spool) Append(c Class, r *Record, done func(Pos, error)) { done(Pos{}, ErrClosed) }

// Consumer gives the reader of the records for the connector called name; the same one for the same name.
func (s *Spool) Consumer(name string) *Consumer { return &Consumer{} }

// Consumers names the connectors that the spool holds records or counts for, also those that the configuration has no more.
func (s *Spool) Consumers() []string { return nil }

// Forget settles everything that is pending for a connector that is gone as Expired.
func (s *Spool) Forget(name string) {}

// Ledger gives a line for each route and connector.
func (s *Spool) Ledger() []Tally { return nil }

// Stats gives the state of the spool.
func (s *Spool) Stats() Stats { return Stats{} }

// Close writes what is waiting and the cursors, and closes the files.
func (s *Spool) Close() error { return nil }

// Consumer reads what is for one connector.
type Consumer struct{}

// Read gives up to max entries, of about maxBytes octets together but at least one, in the order in which they were appended,
// higher classes first. It waits until there is one. What was handed out before and is not settled is not handed out again.
func (c *Consumer) Read(ctx context.Context, max, maxBytes int) ([]Entry, error) { return nil, ErrClosed }

// Settle says what became of an entry. Entries may be settled in any order; settling one twice counts once.
func (c *Consumer) Settle(p Pos, o Outcome) {}

// Rewind makes Read hand out again, in order, what was handed out and is not settled.
func (c *Consumer) Rewind() {}
