// Package sdnotify speaks with systemd as sd_notify(3) and sd_listen_fds(3) describe it: readiness, watchdog, handed-over sockets.
//
// Where systemd is not there nothing happens: every method of a Notifier without a socket succeeds and does nothing.
// The package reads the environment through the function that it is given, and changes it never.
package sdnotify

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Notifier tells systemd how the service is.
type Notifier struct {
	socket   string
	watchdog time.Duration
}

// New makes a Notifier from NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.
func New(getenv func(string) string) *Notifier {
	n := &Notifier{socket: getenv("NOTIFY_SOCKET")}
	if pid := getenv("WATCHDOG_PID"); pid == "" || pid == strconv.Itoa(os.Getpid()) {
		if us, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 && n.socket != "" {
			n.watchdog = time.Duration(us) * time.Microsecond
		}
	}
	return n
}

// Interval gives how often Alive should be called, half of what systemd allows; 0 where there is no watchdog.
func (n *Notifier) Interval() time.Duration { return n.watchdog / 2 }

// Ready says that the service is up, or that a reload is over.
func (n *Notifier) Ready(status string) error { return n.send("READY=1", "STATUS="+oneLine(status)) }

// Reloading says that the configuration is being taken over; Ready ends it.
func (n *Notifier) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("sd_notify: %w", err)
	}
	return n.send("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
}

// Stopping says that the service goes down.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1") }

// Status sets the line that `systemctl status` shows.
func (n *Notifier) Status(status string) error { return n.send("STATUS=" + oneLine(status)) }

// Alive feeds the watchdog.
func (n *Notifier) Alive() error { return n.send("WATCHDOG=1") }

// oneLine keeps a text from being read as another assignment.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == 0 {
			return ' '
		}
		return r
	}, s)
}

func (n *Notifier) send(lines ...string) error {
	if n.socket == "" {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("sd_notify: %w", err)
	}
	defer unix.Close(fd)
	// A leading @ is the abstract name space here as it is with systemd.
	if err := unix.Sendmsg(fd, []byte(strings.Join(lines, "\n")), nil, &unix.SockaddrUnix{Name: n.socket}, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("sd_notify: %w", err)
	}
	return nil
}

// firstFD is where handed-over sockets begin: SD_LISTEN_FDS_START.
const firstFD = 3

// Files gives the sockets that systemd has handed over to this process, by their names (FileDescriptorName=), in order.
// Call it once: each file is the caller's to close.
func Files(getenv func(string) string) map[string][]*os.File {
	if getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil
	}
	count, err := strconv.Atoi(getenv("LISTEN_FDS"))
	if err != nil || count <= 0 || count > 1<<16 {
		return nil
	}
	names := strings.Split(getenv("LISTEN_FDNAMES"), ":")
	files := map[string][]*os.File{}
	for i := range count {
		name := "unknown"
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		unix.CloseOnExec(firstFD + i)
		files[name] = append(files[name], os.NewFile(uintptr(firstFD+i), name))
	}
	return files
}
