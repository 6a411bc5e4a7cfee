package carrier

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/common/wire"

	"golang.org/x/time/rate"
)

// maxAnswerPad is what message 2 is padded by at most, in bytes: who sees where it
// ends, because its repetition begins with the same bytes, finds no length of ours.
const maxAnswerPad = 200

// learnInterval is how often the day of an ID is looked for that is not of these days,
// at most: it takes a 500th of a processor.
const learnInterval = 5 * time.Second

// An admission is what a Server makes of first messages: which are for it, which are
// let through, and what each is answered. It knows nothing of sessions. Safe for
// concurrent use.
type admission struct {
	log     *slog.Logger // constant, like what follows up to seldom
	static  *handshake.Static
	public  handshake.PublicKey
	guard   *handshake.Guard
	held    account // what the guard remembers
	engines []string
	seldom  *seldom

	learning  rate.Sometimes
	strange   chan handshake.ID // one, of which learn has not heard
	untimely  atomic.Uint64     // as in Stats, like excess
	excess    atomic.Uint64
	forgotten atomic.Uint64 // as in Stats, when it was looked at last
}

// newAdmission returns the admission of a Server that has so much memory, whose
// account is above that of what is remembered.
func newAdmission(cfg *ServerConfig, log *slog.Logger, seldom *seldom, above *account, memory int64) *admission {
	a := &admission{
		log:     log,
		static:  cfg.Key.Static(),
		public:  cfg.Key.Public(),
		held:    account{above: above},
		engines: cfg.Engines,
		seldom:  seldom,

		learning: rate.Sometimes{Interval: learnInterval},
		strange:  make(chan handshake.ID, 1),
	}
	var err error
	if a.guard, err = handshake.NewGuard(cfg.Marks, nil); err != nil {
		log.Warn("what is kept of the times of sessions cannot be used: each new client needs a round trip more until it is deleted", "err", err)
	}
	a.guard.Bound(memory/guardPart, a.held.add)
	return a
}

// A welcome is what a first message that is answered has come to. Whoever has recorded
// a message can send an untimely one: it shows nobody to be a client.
type welcome struct {
	hello    handshake.Hello
	keys     handshake.Keys
	answer   []byte // message 2
	refused  bool   // the answer says no
	untimely bool   // it says so because of the time
}

// expects tells whether a session of that ID may begin now.
func (a *admission) expects(id handshake.ID) bool {
	if a.guard.Expects(id, a.public) {
		return true
	}
	// Beside the request, so that its answer shows nothing; and seldom, because whoever
	// comes can have it done.
	a.learning.Do(func() {
		select {
		case a.strange <- id:
		default:
		}
	})
	return false
}

// learn finds out of which days strange IDs are until ctx ends. Behind a proxy that
// writes its own Date a server whose clock is wrong by days would refuse everybody, and
// say nothing.
func (a *admission) learn(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-a.strange:
			if days := a.guard.Learn(ctx, id, a.public); days != 0 {
				a.seldom.warn(a.log, "a client came on a wrong day: it goes on with a session that is forgotten here, or the clock of this computer or of a client is wrong, or was set, or somebody repeats old paths",
					"days ahead", days, "so far", a.untimely.Add(1))
			}
		}
	}
}

// welcome says what msg comes to as the first message of session id: nil, if it is
// none for this server, or none that may be let through or answered. It must be called
// once for each message.
func (a *admission) welcome(id handshake.ID, msg []byte) *welcome {
	responder, hello, err := a.static.Respond(id, msg)
	if err != nil {
		a.log.Debug("not a first message for this server", "err", err)
		return nil
	}
	admitted := a.guard.Admit(hello.Time, hello.Epoch, handshake.NameOf(msg))
	a.warnOfCrowd(admitted)
	answer := handshake.Answer{Status: handshake.Accepted, Version: handshake.Version}
	switch {
	case errors.Is(admitted, handshake.ErrClock):
		answer.Status = handshake.WrongTime
		answer.Time, answer.Epoch = a.guard.Time()
		// Anybody on the path can repeat an old one as often as he likes.
		a.seldom.warn(a.log, "a first message came at a wrong time and was told the right one: the clock of this computer or of a client is wrong, or was set, or somebody repeats old ones",
			"so far", a.untimely.Add(1))
	case admitted != nil:
		a.log.Debug("first message not admitted", "err", admitted)
		return nil
	case hello.Version != handshake.Version:
		answer.Status = handshake.UnknownVersion
	case !slices.Contains(a.engines, hello.Engine):
		answer.Status, answer.Text = handshake.UnknownEngine, strings.Join(a.engines, ",")
	case hello.AES && wire.HasAES:
		answer.Cipher = wire.AES256GCM
	}
	w := &welcome{hello: hello, refused: answer.Status != handshake.Accepted, untimely: admitted != nil}
	if w.answer, w.keys, err = responder.Answer(answer, rand.IntN(maxAnswerPad)); err != nil {
		a.log.Error("no answer to a first message", "err", err)
		return nil
	}
	return w
}

// warnOfCrowd says that more first messages come than can be remembered, of which one
// was admitted or not.
func (a *admission) warnOfCrowd(admitted error) {
	if errors.Is(admitted, handshake.ErrCrowded) {
		a.excess.Add(1)
	} else if now := a.guard.Forgotten(); a.forgotten.Swap(now) == now {
		return
	}
	a.seldom.warn(a.log, "more sessions begin than can be remembered: clients whose clocks are not exact need a round trip more; if that is no attack, raise -memory-limit",
		"forgotten", a.guard.Forgotten(), "refused", a.excess.Load())
}

// close keeps what is to be known after a restart.
func (a *admission) close() {
	a.held.close()
	if err := a.guard.Close(); err != nil {
		a.log.Warn("the times of sessions could not be kept: after the next start, new clients need a round trip more for a while", "err", err)
	}
}
