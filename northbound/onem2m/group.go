package onem2m

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/drawbridge/drawbridge/internal/health"
)

// GroupRefused is the problem of a CSE that does not let device groups become oneM2M groups. Reports and commands go on.
var GroupRefused = health.Code{
	Name:     "group-refused",
	Title:    "the CSE does not let a device group become a oneM2M group",
	Severity: health.Degraded,
	Hint:     "allow the gateway's AE to create groups whose members are the AEs of its devices",
}

// groupMembers is the maxNrOfMembers of our groups.
const groupMembers = 10_000

// groups are the device groups that are kept as oneM2M groups below the gateway's own AE.
type groups struct {
	mu      sync.Mutex
	home    *entity          // guarded by mu: the gateway's AE; nil: no group is kept
	kept    map[string]bool  // guarded by mu: those that are at the CSE
	refused map[string]error // guarded by mu: those that the CSE does not want
	behind  bool             // guarded by mu: the CSE could not take all members just now
}

func (g *groups) init() { g.kept, g.refused = map[string]bool{}, map[string]error{} }

// isBehind tells whether groups are to be brought up to date once more, and then counts that as under way.
func (g *groups) isBehind() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer func() { g.behind = false }()
	return g.behind
}

// gather makes the groups that are asked for, with the devices that are known.
func (s *session) gather(ctx context.Context) error {
	if len(s.c.cfg.Groups) == 0 || s.c.env.Groups == nil {
		return nil
	}
	home, err := s.entity(ctx, s.c.cfg.AE)
	if err != nil {
		return err
	}
	s.groups.mu.Lock()
	s.groups.home = home
	s.groups.mu.Unlock()
	return s.regroup(ctx, nil)
}

// isHome tells of the gateway's own AE where it is there for groups alone.
func (s *session) isHome(e *entity) bool {
	s.groups.mu.Lock()
	defer s.groups.mu.Unlock()
	return e == s.groups.home
}

// regroup brings the members of groups up to date: of those of a device, or, where it is nil, of all.
func (s *session) regroup(ctx context.Context, e *entity) error {
	s.groups.mu.Lock()
	defer s.groups.mu.Unlock()
	home := s.groups.home
	if home == nil || e == home {
		return nil
	}
	for _, name := range s.c.cfg.Groups {
		if e != nil && !slices.Contains(s.c.env.Groups(e.name), name) {
			continue
		}
		var members []string
		for _, each := range s.tree.all() {
			if each != home && slices.Contains(s.c.env.Groups(each.name), name) {
				members = append(members, each.address)
			}
		}
		slices.Sort(members)
		err := s.group(ctx, home, name, members)
		r, answered := errors.AsType[*refusal](err)
		delete(s.groups.refused, name)
		switch {
		case err == nil:
		case answered && meaningOf(r.rsc) == later:
			s.groups.behind = true
		case answered && meaningOf(r.rsc) != lost:
			s.groups.refused[name] = err
		default:
			return err
		}
	}
	if refused := slices.Collect(maps.Values(s.groups.refused)); len(refused) > 0 {
		s.c.env.Health.Set(&GroupRefused, errors.Join(refused...).Error())
	} else {
		s.c.env.Health.Clear(&GroupRefused)
	}
	return nil
}

// group makes a group of AEs, or gives it other members. One without members is only made when it has some.
func (s *session) group(ctx context.Context, home *entity, name string, members []string) error {
	to := home.address + "/" + name
	update := map[string]any{"mid": members, "et": s.end()}
	if len(members) > 0 && !s.groups.kept[name] {
		a := s.resource(home, name)
		a["mt"], a["mnm"], a["mid"] = tyAE, groupMembers, members
		_, err := s.ask(ctx, &request{Op: opCreate, To: home.address, From: home.id, Type: tyGRP, Content: represent("m2m:grp", a)})
		if r, answered := errors.AsType[*refusal](err); !answered || meaningOf(r.rsc) != conflict {
			if err != nil {
				return fmt.Errorf("group: %w", err)
			}
			s.groups.kept[name] = true
			return nil
		}
		s.groups.kept[name] = true
	}
	_, err := s.ask(ctx, &request{Op: opUpdate, To: to, From: home.id, Content: represent("m2m:grp", update)})
	if r, answered := errors.AsType[*refusal](err); answered && meaningOf(r.rsc) == lost {
		delete(s.groups.kept, name)
		if len(members) == 0 {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("group: %w", err)
	}
	return nil
}
