package status

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// collector gives the metrics of a snapshot that is taken when they are asked for.
type collector struct{ snapshot func() Snapshot }

// Describe describes nothing: which listeners and counters there are is known only when they are collected.
func (collector) Describe(chan<- *prometheus.Desc) {}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.snapshot()
	m := metrics{ch}
	m.gateway(&s)
	m.edges(&s)
	m.spool(&s)
	m.keys(&s)
}

// metrics writes the metrics of one collection.
type metrics struct{ ch chan<- prometheus.Metric }

// labels are names and values by turns.
func (m metrics) put(kind prometheus.ValueType, name, help string, value float64, labels ...string) {
	names, values := split(labels)
	m.ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("drawbridge_"+name, help, names, nil), kind, value, values...)
}

// split gives the names and the values of labels. What a chip says of itself need not be text.
func split(labels []string) (names, values []string) {
	for pair := range slices.Chunk(labels, 2) {
		names, values = append(names, pair[0]), append(values, strings.ToValidUTF8(pair[1], "?"))
	}
	return names, values
}

func (m metrics) gauge(name, help string, value float64, labels ...string) {
	m.put(prometheus.GaugeValue, name, help, value, labels...)
}

func (m metrics) counter(name, help string, value float64, labels ...string) {
	m.put(prometheus.CounterValue, name, help, value, labels...)
}

func (m metrics) gateway(s *Snapshot) {
	g := s.Gateway
	m.gauge("info", "The gateway and its version; always 1.", 1, "gateway", g.ID, "version", g.Version)
	m.gauge("start_time_seconds", "When the gateway started, in Unix time.", seconds(g.Started))
	m.gauge("resident_memory_bytes", "Memory of the gateway that is resident.", float64(g.RSSBytes))
	m.gauge("state_bytes", "Size of the state directory on disk.", float64(g.StateBytes))
	m.gauge("ready", "Whether every listener is bound.", truth(g.Ready))
	m.gauge("healthy", "Whether nothing is worse than a notice.", truth(s.Verdict.Well()))
	for _, p := range s.Problems {
		m.gauge("problem", "What is wrong now; 1 for each problem.", 1, "code", p.Code, "severity", p.Severity.String(), "subject", p.Subject)
	}
	for result, n := range s.Outcomes {
		m.counter("reports_total", "Reports of devices since start, by what they were told.", float64(n), "result", result)
	}
	m.gauge("devices_connected", "Devices with a session or association.", float64(s.Devices.Connected))
	m.gauge("commands_queued", "Commands that wait in mailboxes.", float64(s.Devices.Queued))
}

func (m metrics) edges(s *Snapshot) {
	for _, l := range s.Listeners {
		m.gauge("listener_bound", "Whether the listener has its address.", truth(l.Bound), "listener", l.Name, "type", l.Type)
		m.gauge("listener_devices", "Devices with a session at the listener.", float64(l.Devices), "listener", l.Name)
		for name, n := range l.Counters {
			m.gauge("listener_figure", "Figures that listeners keep of themselves, by name.", float64(n), "listener", l.Name, "name", name)
		}
	}
	for _, c := range s.Connectors {
		m.gauge("connector_up", "Whether the connector has a session.", truth(c.State == ConnectorUp), "connector", c.Name, "type", c.Type)
		m.gauge("connector_in_flight", "Publications sent and not yet confirmed.", float64(c.InFlight), "connector", c.Name)
		m.gauge("connector_latency_seconds", "Moving mean from send to confirmation.", c.Latency.Seconds(), "connector", c.Name)
		if !c.TokenEnds.IsZero() {
			m.gauge("connector_token_end_seconds", "When the access token ends, in Unix time.", seconds(c.TokenEnds), "connector", c.Name)
		}
		for name, n := range c.Counters {
			m.gauge("connector_figure", "Figures that connectors keep of themselves, by name.", float64(n), "connector", c.Name, "name", name)
		}
	}
	for _, r := range s.Routes {
		for result, n := range r.Counters {
			m.counter("route_messages_total", "Messages of a route by what became of them when they came in.", float64(n),
				"route", r.Name, "direction", string(r.Direction), "result", result)
		}
	}
}

func (m metrics) spool(s *Snapshot) {
	for _, t := range s.Ledger {
		for _, f := range []struct {
			result string
			n      uint64
		}{{"accepted", t.Accepted}, {"delivered", t.Delivered}, {"expired", t.Expired}, {"dead", t.Dead}} {
			m.counter("messages_total", "Messages from devices by route, connector and result.", float64(f.n), "route", t.Route, "connector", t.Connector, "result", f.result)
		}
		m.gauge("messages_pending", "Messages that wait, by route and connector.", float64(t.Pending), "route", t.Route, "connector", t.Connector)
	}
	q := s.Spool
	m.gauge("spool_bytes", "Size of the spool on disk.", float64(q.Bytes))
	m.gauge("spool_max_bytes", "Size that the spool may have.", float64(q.MaxBytes))
	m.gauge("spool_records", "Records that are pending for any connector.", float64(q.Records))
	m.gauge("spool_full", "Whether the spool refuses records.", truth(q.Full))
	age := 0.0
	if !q.Oldest.IsZero() {
		age = s.Time.Sub(q.Oldest).Seconds()
	}
	m.gauge("spool_oldest_seconds", "Age of the oldest pending record; 0 where there is none.", age)
	m.counter("spool_lost_total", "Records that damage to the disk has taken.", float64(q.Lost))
	m.counter("spool_dropped_total", "Records dropped to make room.", float64(q.Dropped))
	m.counter("spool_commits_total", "Writes that were flushed to the disk.", float64(q.Commits))
	m.counter("spool_written_bytes_total", "Octets written to the disk.", float64(q.Written))
	m.syncs(q.SyncNanos)
	for connector, n := range q.PendingBytes {
		m.gauge("spool_pending_bytes", "Octets that are pending, by connector.", float64(n), "connector", connector)
	}
}

// The bounds of the histogram of flushes, as powers of two of nanoseconds: 16 µs to 17 s.
const (
	leastSync = 14
	mostSync  = 34
)

// syncs writes the histogram of flushes, whose bucket i is for less than 1<<i ns.
func (m metrics) syncs(counts []uint64) {
	buckets, total, sum := map[float64]uint64{}, uint64(0), 0.0
	for i, n := range counts {
		total += n
		sum += float64(n) * 0.75 * float64(uint64(1)<<i) / 1e9 // of a bucket only the bounds are known
		if i >= leastSync && i <= mostSync {
			buckets[float64(uint64(1)<<i)/1e9] = total
		}
	}
	m.histogram("spool_sync_seconds", "Flushes to the disk by how long they took; the sum is an estimate.", total, sum, buckets)
}

// operations writes the histogram of a chip's operations.
func (m metrics) operations(c hwcrypto.QueueStats) {
	bounds := hwcrypto.QueueBuckets()
	buckets, total, sum, last := map[float64]uint64{}, uint64(0), 0.0, 0.0
	for i, n := range c.Histogram {
		total += n
		if i < len(bounds) {
			bound := bounds[i].Seconds()
			buckets[bound] = total
			sum += float64(n) * (last + bound) / 2
			last = bound
		} else {
			sum += float64(n) * last
		}
	}
	m.histogram("chip_operation_seconds", "Operations of the chip by how long they took; the sum is an estimate.", total, sum, buckets, "chip", c.Chip)
}

func (m metrics) histogram(name, help string, count uint64, sum float64, buckets map[float64]uint64, labels ...string) {
	names, values := split(labels)
	m.ch <- prometheus.MustNewConstHistogram(prometheus.NewDesc("drawbridge_"+name, help, names, nil), count, sum, buckets, values...)
}

func (m metrics) keys(s *Snapshot) {
	for _, k := range s.Keys {
		m.gauge("key_hardware", "Whether the key lives in a chip.", truth(k.Info.Hardware), "key", k.Name)
		if !k.Ends.IsZero() {
			m.gauge("key_certificate_end_seconds", "When the key's certificate ends, in Unix time.", seconds(k.Ends), "key", k.Name)
		}
	}
	same := map[string]int{}
	for _, c := range s.Chips {
		if same[c.Chip]++; same[c.Chip] > 1 { // two tokens may have one label
			c.Chip = fmt.Sprint(c.Chip, " ", same[c.Chip])
		}
		m.operations(c)
		m.gauge("chip_queue_depth", "Operations that wait for the chip.", float64(c.Depth), "chip", c.Chip)
		for _, f := range []struct {
			result string
			n      uint64
		}{{"ok", c.Done}, {"failed", c.Failed}, {"timeout", c.TimedOut}} {
			m.counter("chip_operations_total", "Operations of the chip by result.", float64(f.n), "chip", c.Chip, "result", f.result)
		}
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
