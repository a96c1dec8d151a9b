package bridge

import (
	"time"

	"github.com/psi-runtime/psi/internal/control"
)

// Exit codes from here on are signals, as shells and engines write them.
const signalBase, lastSignal = 128, 64

// exit puts together what is known about the end, and the event that goes with it, unless
// who attended the container has told it already. It is called when the guest has ended.
func (g *guest) exit(told *control.Event) (control.Exit, *control.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := control.Exit{Guest: g.id, Name: g.name, Cause: g.asked, Message: g.message}
	code := g.cmd.ProcessState.ExitCode()
	if code > signalBase && code <= signalBase+lastSignal && g.container != "" {
		signal := code - signalBase
		e.Signal = &signal
	} else if code >= 0 {
		e.Code = &code
	}
	if told != nil {
		e.Cause, e.Limit, e.Observed = causeOf(told)
		return e, nil
	}
	if limit, observed, cause := g.overrun(e.Signal != nil); cause != "" {
		e.Cause, e.Limit, e.Observed = cause, &limit, &observed
		return e, g.eventOf(cause, limit, observed)
	}
	if e.Cause == "" {
		e.Cause = control.CauseExit
		if e.Signal != nil {
			e.Cause = control.CauseSignal
		}
	}
	if e.Message == "" && (e.Cause == control.CauseSignal || e.Cause == control.CauseExit && code != 0) {
		e.Message = g.stderr.String()
	}
	if code < 0 && g.asked == "" {
		e.Cause, e.Message = control.CauseSupervisor, "the engine's command ended: "+g.cmd.ProcessState.String()
	}
	return e, nil
}

// overrun says which limit a guest that was killed had passed. psi-runtime kills for it;
// the figures seen last say why.
func (g *guest) overrun(killed bool) (limit, observed float64, cause string) {
	if g.process == nil || g.policy == nil {
		return 0, 0, ""
	}
	l, f := g.policy.Limits(), g.process.final
	lived := time.Since(g.started)
	switch {
	case f.oomKills > 0:
		return float64(l.Mem), float64(l.Mem), control.CauseOOM
	case killed && l.CPUTime > 0 && f.cpu >= l.CPUTime:
		return milliseconds(l.CPUTime), milliseconds(f.cpu), control.CauseCPU
	case killed && l.Wall > 0 && g.asked == "" && lived >= l.Wall:
		return milliseconds(l.Wall), milliseconds(lived), control.CauseWall
	}
	return 0, 0, ""
}

// causeOf reads the end of a guest out of the event that goes with it.
func causeOf(e *control.Event) (cause string, limit, observed *float64) {
	figure := func(key string) *float64 {
		n, _ := e.Details[key].(float64)
		return &n
	}
	if e.Event == control.MemKill {
		return control.CauseOOM, figure("limit"), figure("limit")
	}
	return control.CauseCPU, figure("limit"), figure("observed")
}

func (g *guest) eventOf(cause string, limit, observed float64) *control.Event {
	e := control.Event{Guest: g.id, Name: g.name, TS: float64(time.Now().UnixMicro()) / 1e6}
	switch cause {
	case control.CauseOOM:
		e.Event, e.Details = control.MemKill, map[string]any{"limit": limit, "oom_kills": g.process.final.oomKills}
	case control.CauseCPU:
		e.Event, e.Details = control.CPUThrottle, map[string]any{"reason": "cpu_ms", "limit": limit, "observed": observed}
	default:
		return nil
	}
	return &e
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
