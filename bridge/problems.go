package bridge

import (
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
)

// The problems that the bridge reports. Those about a connector have the subject "connector NAME".
var (
	CloudUnreachable = health.Code{
		Name: "cloud-unreachable", Title: "the cloud cannot be reached", Severity: health.Degraded, After: 10 * time.Second,
		Hint: "messages are kept on disk until it is back; `drawbridge doctor` shows which step fails",
	}
	CloudRefusesLogin = health.Code{
		Name: "cloud-refuses-login", Title: "the cloud refuses this gateway", Severity: health.Failing,
		Hint: "waiting will not mend it: look at the credentials, the gateway's registration and the connector's configuration; `drawbridge doctor` shows the step",
	}
	CloudRefusesMessage = health.Code{
		Name: "cloud-refuses-message", Title: "a message is refused again and again", Severity: health.Degraded,
		DependsOn: []string{"cloud-unreachable"},
		Hint:      "if the cloud takes the message behind it, it goes to the dead letters; else the cloud is at fault and all are kept",
	}
	CloudRefusesAll = health.Code{
		Name: "cloud-refuses-all", Title: "the cloud refuses every message", Severity: health.Failing,
		Hint: "look at what the cloud allows this gateway to publish; meanwhile one message is tried now and then, and the rest is kept",
	}
	ConnectorPaused = health.Code{
		Name: "connector-paused", Title: "an operator has paused the connector", Severity: health.Notice,
		Hint: "messages are kept on disk until it is resumed",
	}
	DeadLettersWaiting = health.Code{
		Name: "dead-letters", Title: "messages could not be delivered", Severity: health.Notice,
		Hint: "`drawbridge spool` lists them with their reasons, replays or drops them",
	}
	DeadLettersFull = health.Code{
		Name: "dead-letters-full", Title: "there is no room for more dead letters", Severity: health.Failing,
		Hint: "the connector waits: `drawbridge spool` replays or drops them",
	}
	DeadLettersFailing = health.Code{
		Name: "dead-letters-failing", Title: "a dead letter cannot be stored", Severity: health.Failing,
		Hint: "the connector waits until it can: look at the disk",
	}
	QueueGrowing = health.Code{
		Name: "queue-growing", Title: "messages are waiting longer and longer", Severity: health.Degraded, After: time.Minute,
		DependsOn: []string{"cloud-unreachable", "cloud-refuses-login", "connector-paused"},
		Hint:      "more comes in than the cloud takes: look at its limits and at the line",
	}
	SpoolFull = health.Code{
		Name: "spool-full", Title: "the queue on disk is full", Severity: health.Failing,
		Hint: "devices are told to try again later; it ends when a cloud is back, the disk has room or spool.max_size is raised",
	}
	QueueOrphaned = health.Code{
		Name: "queue-orphaned", Title: "messages wait for a connector that is configured no more", Severity: health.Notice,
		Hint: "they are kept until they expire, and are delivered if a connector of that name comes back",
	}
	SpoolDamaged = health.Code{
		Name: "spool-damaged", Title: "the disk has lost queued messages", Severity: health.Degraded,
		Hint: "the storage is failing: replace it; `drawbridge spool acknowledge` ends this until more is lost",
	}
	StoreDamaged = health.Code{
		Name: "bridge-store-damaged", Title: "mailboxes and dead letters could not be read", Severity: health.Degraded,
		Hint: "the file was put aside under the name in the detail, and a new one begun",
	}
	MailboxesFull = health.Code{
		Name: "mailboxes-full", Title: "there is no room for commands to sleeping devices", Severity: health.Degraded,
		Hint: "commands are refused until devices wake up or commands expire",
	}
	PayloadKeyFailing = health.Code{
		Name: "payload-key-failing", Title: "payloads cannot be sealed or opened", Severity: health.Failing,
		Hint: "devices are told to try again later, and nothing goes out in the clear: see that the chip is there and that the key is of the right kind (drawbridge keys list): jwe and cose-encrypt0 want a secret, jws and cose-sign1 a key pair",
	}
	RepliesLost = health.Code{
		Name: "replies-lost", Title: "replies of devices could not be stored", Severity: health.Degraded,
		Hint: "the commands were carried out, but the cloud was not told: look at the disk and at spool.max_size",
	}
)
