package dtls

import (
	"bytes"
	"errors"
)

// State is what makes an association, beside its sequence numbers. It is secret.
type State struct {
	Suite  uint16
	Keys   []byte
	CID    []byte // that this side gave out; nil: none was negotiated
	OutCID []byte
	Verify []byte // verify_data of this side's Finished
	FinSeq uint16
}

// State gives the association's state.
func (c *Conn) State() State {
	s := State{Suite: c.suite.ID, Keys: bytes.Clone(c.keys), OutCID: bytes.Clone(c.outCID), Verify: bytes.Clone(c.verify[:]), FinSeq: c.finSeq}
	if c.hasCID {
		s.CID = bytes.Clone(c.inCID[:])
	}
	return s
}

// Restore makes the association again. Its records begin with the sequence number next, below which all may have been used;
// what the peer has sent with numbers below received counts as accepted. Nothing can be sent until Reserve has been called.
func Restore(s State, next, received uint64) (*Conn, error) {
	suite := suiteByID(s.Suite)
	if suite == nil || len(s.Keys) != 2*(suite.macLen+suite.keyLen+suite.ivLen) || s.CID != nil && len(s.CID) != CIDLen || len(s.OutCID) > 255 {
		return nil, errors.New("association state does not make sense")
	}
	c := &Conn{suite: suite, keys: bytes.Clone(s.Keys)} // its ciphers are made when they are needed
	if s.CID != nil {
		c.inCID, c.hasCID = CID(s.CID), true
	}
	c.outCID = bytes.Clone(s.OutCID)
	copy(c.verify[:], s.Verify)
	c.finSeq = s.FinSeq
	c.plainSeq = 1 << 32 // beyond what a handshake uses
	c.out.seq, c.limit = next, next
	if received > 0 {
		c.in.seq, c.window, c.started = received-1, ^uint64(0), true
	}
	return c, nil
}

// Sent gives the next sequence number to be used.
func (c *Conn) Sent() uint64 { return c.out.seq }

// Received gives the number after the highest that has been accepted.
func (c *Conn) Received() uint64 {
	if !c.started {
		return 0
	}
	return c.in.seq + 1
}

// Reserve allows sequence numbers below limit to be used. A new association may use all.
func (c *Conn) Reserve(limit uint64) { c.limit = min(limit, maxSeq) }

// Limit gives what Reserve was last told.
func (c *Conn) Limit() uint64 { return c.limit }
