package status

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// picture is the data path drawn: devices, listeners, routes, queues, clouds, and what flows between them.
type picture struct {
	Width, Height int
	Nodes         []node
	Edges         []edge
	Labels        []label // of the stages
}

// node is a box.
type node struct {
	X, Y, W, H int
	Class      string // "ok", "warn", "bad", "idle"
	Title, Sub string // shortened to fit
	Full       string // both in full
	Href       string
	Fill       int // width of the bar at the bottom: the share of the spool that the queue takes
	id         string
	stage      int
}

// edge is a stream from one node to another.
type edge struct {
	D     string // SVG path
	Width string // by the rate
	Class string // "moving", "idle", "stuck"
}

type label struct {
	X, Y int
	Text string
}

// maxNodes is how many nodes of a stage are drawn; the pages show the rest.
const maxNodes = 8

// stages of the picture.
const (
	stageDevices = iota
	stageListeners
	stageRoutes
	stageQueues
	stageClouds
	stageCount
)

// draw draws the data path, from left to right or, for narrow screens, from top to bottom.
func (m *moment) draw(l *language, upright bool) picture {
	p := picture{}
	var stages [stageCount][]*node
	put := func(stage int, n node) {
		n.stage = stage
		n.Full = strings.TrimSpace(n.Title + " " + n.Sub)
		if len(stages[stage]) == maxNodes {
			stages[stage][maxNodes-1] = &node{stage: stage, Class: "idle", Title: l.text("path.more"), Full: l.text("path.more"), Href: n.Href}
			return
		}
		stages[stage] = append(stages[stage], &n)
	}
	put(stageDevices, node{id: "devices", Class: class(m.Devices.Connected > 0), Title: l.text("nav.devices"), Sub: number(m.Devices.Connected), Href: "/devices"})
	m.nodes(l, put)
	p.place(l, stages[:], upright)
	find := func(id string) *node {
		for _, nodes := range stages {
			for _, n := range nodes {
				if n.id == id {
					return n
				}
			}
		}
		return nil
	}
	join := func(from, to string, rate float64, stuck bool) {
		a, b := find(from), find(to)
		if a == nil || b == nil {
			return
		}
		e := edge{D: curve(a, b, upright), Class: "idle", Width: fmt.Sprintf("%.1f", 1.2+min(math.Log2(1+rate), 9)*0.6)}
		switch {
		case stuck:
			e.Class = "stuck"
		case rate > 0:
			e.Class = "moving"
		}
		p.Edges = append(p.Edges, e)
	}
	m.edges(join)
	for _, nodes := range stages {
		for _, n := range nodes {
			width := 20
			if upright {
				width = 21
			}
			n.Fill = n.Fill * n.W / 100
			n.Title, n.Sub = shorten(n.Title, width), shorten(n.Sub, width+4)
			p.Nodes = append(p.Nodes, *n)
		}
	}
	return p
}

func (m *moment) nodes(l *language, put func(int, node)) {
	for _, x := range m.Listeners {
		n := node{id: "listener " + x.Name, Class: "ok", Title: x.Name, Sub: strings.ToUpper(x.Type) + " · " + l.count("flow.devices", x.Devices), Href: "/clouds#listeners"}
		if !x.Bound {
			n.Class, n.Sub = "bad", l.text("listener.unbound")
		}
		put(stageListeners, n)
	}
	for _, r := range m.Routes {
		n := node{id: "route " + r.Name, Class: class(m.routeRate(r.Name) > 0), Title: r.Name, Sub: r.Resource, Href: "/routes"}
		if r.Direction == Down {
			n.Class, n.Title = "ok", "← "+r.Name
		}
		put(stageRoutes, n)
	}
	for _, c := range m.Connectors {
		pending := m.Pending(c.Name)
		q := node{id: "queue " + c.Name, Class: class(pending > 0), Title: number(pending), Sub: l.text("path.waiting"), Href: "/clouds"}
		q.Fill = int(min(100, 100*m.Spool.PendingBytes[c.Name]/max(1, m.Spool.MaxBytes)))
		if pending > 0 {
			q.Fill = max(3, q.Fill)
		}
		n := node{id: "cloud " + c.Name, Class: "ok", Title: c.Name, Sub: c.Type + " · " + l.text("state."+string(c.State)), Href: "/clouds"}
		switch {
		case m.Spool.Full:
			q.Class, q.Sub = "bad", l.text("path.full")
		case c.State != ConnectorUp && pending > 0:
			q.Class = "warn"
		}
		switch c.State {
		case ConnectorUp:
			if c.Latency > 0 {
				n.Sub = c.Type + " · " + l.span(c.Latency)
			}
		case ConnectorPaused, ConnectorGone:
			n.Class = "idle"
		default:
			n.Class = "warn"
		}
		put(stageQueues, q)
		put(stageClouds, n)
	}
}

func (m *moment) edges(join func(from, to string, rate float64, stuck bool)) {
	devices := 0
	for _, x := range m.Listeners {
		if x.Bound {
			devices += x.Devices
		}
	}
	// Which listener a message came by is not in the ledger: what comes in is shared out by the devices that each has.
	share := func(x Listener) float64 {
		if !x.Bound {
			return 0
		}
		return m.Total.In * float64(x.Devices) / float64(max(1, devices))
	}
	for _, x := range m.Listeners {
		join("devices", "listener "+x.Name, share(x), !x.Bound)
		for _, r := range m.Routes {
			if r.Direction == Up {
				join("listener "+x.Name, "route "+r.Name, share(x)*m.routeRate(r.Name)/max(m.Total.In, 1e-9), false)
			}
		}
	}
	for _, r := range m.Routes {
		for _, peer := range r.Peers {
			if r.Direction == Down {
				join("route "+r.Name, "cloud "+peer, 0, false)
				continue
			}
			join("route "+r.Name, "queue "+peer, m.Rates[pair{r.Name, peer}].In, false)
		}
	}
	for _, c := range m.Connectors {
		out := 0.0
		for k, r := range m.Rates {
			if k.connector == c.Name {
				out += r.Out
			}
		}
		join("queue "+c.Name, "cloud "+c.Name, out, c.State != ConnectorUp && m.Pending(c.Name) > 0)
	}
}

// routeRate gives what comes in on a route, in messages per second.
func (m *moment) routeRate(route string) (most float64) {
	for k, r := range m.Rates {
		if k.route == route {
			most = max(most, r.In)
		}
	}
	return most
}

// place gives the nodes their places.
func (p *picture) place(l *language, stages [][]*node, upright bool) {
	names := []string{"", "path.listeners", "path.routes", "path.queues", "path.clouds"}
	if upright {
		const width, height, gap, perRow = 168, 46, 12, 2
		y := 0
		for i, nodes := range stages {
			if len(nodes) == 0 {
				continue
			}
			if names[i] != "" {
				p.Labels = append(p.Labels, label{4, y + 14, l.text(names[i])})
				y += 22
			}
			for row := range slices.Chunk(nodes, perRow) {
				left := (360 - len(row)*width - (len(row)-1)*gap) / 2
				for j, n := range row {
					n.X, n.Y, n.W, n.H = left+j*(width+gap), y, width, height
				}
				y += height + gap
			}
			y += 18
		}
		p.Width, p.Height = 360, max(60, y-18)
		return
	}
	x := [stageCount]int{0, 178, 416, 674, 838}
	w := [stageCount]int{112, 172, 192, 98, 162}
	const height, gap, top = 48, 14, 26
	tallest := 1
	for _, nodes := range stages {
		tallest = max(tallest, len(nodes))
	}
	p.Width, p.Height = 1000, top+tallest*(height+gap)
	for i, nodes := range stages {
		if names[i] != "" {
			p.Labels = append(p.Labels, label{x[i], 12, l.text(names[i])})
		}
		y := top + (p.Height-top-len(nodes)*(height+gap))/2 + gap/2
		for _, n := range nodes {
			n.X, n.Y, n.W, n.H = x[i], y, w[i], height
			y += height + gap
		}
	}
}

// curve gives the path between the facing sides of two nodes.
func curve(a, b *node, upright bool) string {
	if upright {
		x1, y1, x2, y2 := a.X+a.W/2, a.Y+a.H, b.X+b.W/2, b.Y
		mid := (y1 + y2) / 2
		return fmt.Sprintf("M%d %dC%d %d %d %d %d %d", x1, y1, x1, mid, x2, mid, x2, y2)
	}
	x1, y1, x2, y2 := a.X+a.W, a.Y+a.H/2, b.X, b.Y+b.H/2
	mid := (x1 + x2) / 2
	return fmt.Sprintf("M%d %dC%d %d %d %d %d %d", x1, y1, mid, y1, mid, y2, x2, y2)
}

func class(active bool) string {
	if active {
		return "ok"
	}
	return "idle"
}

// shorten cuts s to so many columns; Hangul and Han take two.
func shorten(s string, columns int) string {
	n := 0
	for i, r := range s {
		n++
		if r >= 0x1100 {
			n++
		}
		if n > columns {
			return strings.TrimRight(s[:i], " ") + "…"
		}
	}
	return s
}
