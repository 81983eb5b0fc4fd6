package mqtt

import (
	"net"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/southbound/mqtt/packet"
)

// writeTimeout is how long a peer may take to read what one write sends.
const writeTimeout = 20 * time.Second

// output is what waits to be written to a connection. Appending never blocks; one goroutine writes while there is
// something to write, and none is there while there is not.
type output struct {
	nc      net.Conn
	chunks  *chunks
	drained func() // called when a write has made room

	mu      sync.Mutex
	buf     []byte    // guarded by mu
	writing bool      // guarded by mu
	closing bool      // guarded by mu: nothing more is taken
	hangUp  bool      // guarded by mu: close once buf is written
	dead    bool      // guarded by mu: nothing is written any more
	idle    sync.Cond // its L is &mu; signalled when buf has been taken and when writing ends
}

func (o *output) init(nc net.Conn, chunks *chunks, drained func()) {
	o.nc, o.chunks, o.drained = nc, chunks, drained
	o.idle.L = &o.mu
}

// chunks lends buffers of 4 KiB, so that an idle connection holds none.
type chunks struct{ pool sync.Pool }

type chunk [4096]byte

func (p *chunks) get() []byte {
	if c, ok := p.pool.Get().(*chunk); ok {
		return c[:0]
	}
	return new(chunk)[:0]
}

// put takes back what get gave; anything else is left to the collector.
func (p *chunks) put(b []byte) {
	if cap(b) == len(chunk{}) {
		p.pool.Put((*chunk)(b[:cap(b)]))
	}
}

// start gives the buffer to append to.
func (o *output) start() []byte { // o.mu held
	if o.buf == nil {
		return o.chunks.get()
	}
	return o.buf
}

// append lets add write to the buffer and sees to it that it is sent.
func (o *output) append(add func([]byte) []byte) {
	o.mu.Lock()
	if !o.dead && !o.closing {
		o.buf = add(o.start())
		o.wake()
	}
	o.mu.Unlock()
}

func (o *output) wake() { // o.mu held
	if !o.writing && len(o.buf) > 0 {
		o.writing = true
		go o.write() // its owner is the connection, which waits in wait
	}
}

// ack is append for the packet that is sent most.
func (o *output) ack(v packet.Version, t packet.Type, id uint16, code packet.Code, reason string) {
	o.mu.Lock()
	if !o.dead && !o.closing {
		o.buf = packet.AppendAck(o.start(), v, t, id, code, reason)
		o.wake()
	}
	o.mu.Unlock()
}

// mostUnread is how many octets may wait before what the client sends is not read either.
const mostUnread = 4 * highWater

// holdBack waits while too much waits to be read by the client: it would make us answer, and answers are never dropped.
func (o *output) holdBack() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.writing && len(o.buf) > mostUnread {
		o.idle.Wait()
	}
}

// hasRoom tells whether less than highWater waits.
func (o *output) hasRoom() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.dead && !o.closing && len(o.buf) < highWater
}

func (o *output) write() {
	var b []byte
	for {
		o.mu.Lock()
		o.chunks.put(b)
		b, o.buf = o.buf, nil
		o.idle.Broadcast()
		if len(b) == 0 || o.dead {
			o.writing = false
			hangUp := o.hangUp
			o.mu.Unlock()
			o.chunks.put(b)
			if hangUp {
				o.nc.Close()
			}
			return
		}
		o.mu.Unlock()
		err := o.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
		if err == nil {
			_, err = o.nc.Write(b)
		}
		if err != nil {
			o.kill()
		} else if o.drained != nil {
			o.drained()
		}
	}
}

// kill closes the connection at once.
func (o *output) kill() {
	o.mu.Lock()
	o.dead = true
	o.mu.Unlock()
	o.nc.Close()
}

// finish sends last, takes nothing more, and waits until everything is written.
func (o *output) finish(last []byte) {
	o.mu.Lock()
	if !o.dead && !o.closing {
		o.buf = append(o.start(), last...)
		o.closing = true
		o.wake()
	}
	for o.writing {
		o.idle.Wait()
	}
	o.mu.Unlock()
}

// close takes nothing more, sends last after what waits, and then closes the connection. It does not wait.
func (o *output) close(last []byte) {
	o.mu.Lock()
	if !o.dead && !o.closing {
		if len(o.buf)+len(last) > 0 {
			o.buf = append(o.start(), last...)
		}
		o.closing, o.hangUp = true, true
		o.wake()
	}
	now := o.hangUp && !o.writing
	o.mu.Unlock()
	if now {
		o.nc.Close()
	}
}
