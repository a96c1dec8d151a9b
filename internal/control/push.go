package control

// Event is a message that nobody asked for: something happened to a guest.
type Event struct {
	Event   string         `json:"event"` // one of the constants below
	Guest   string         `json:"guest"`
	Name    string         `json:"name"`
	TS      float64        `json:"ts"` // Unix time in seconds
	Details map[string]any `json:"details"`
}

// The types of event.
const (
	MemKill     = "MEM_KILL"       // details: limit, oom_kills
	CPUThrottle = "CPU_THROTTLE"   // details: reason "quota" or "cpu_ms", limit, observed
	Hotload     = "POLICY_HOTLOAD" // details: policy_digest
	Broken      = "BROKER_ERROR"   // details: error
	Denied      = "DENIED"         // details: kind, operation, path or address, rule, errno, pid, command, suppressed
)

// Suppressed is the kind of a DENIED event that only says how many denials were not told.
const Suppressed = "suppressed"

// Exit is the end of a guest, pushed as {"exited": …}.
type Exit struct {
	Guest    string   `json:"guest"`
	Name     string   `json:"name"`
	Cause    string   `json:"cause"`
	Code     *int     `json:"code"`
	Signal   *int     `json:"signal"`
	Limit    *float64 `json:"limit"`
	Observed *float64 `json:"observed"`
	Message  string   `json:"message"`
}

// The causes of a guest's end.
const (
	CauseExit       = "exit"       // its first process returned; see Code
	CauseSignal     = "signal"     // something killed it; see Signal
	CauseOOM        = "oom"        // it needed more memory; Limit and Observed in bytes
	CauseCPU        = "cpu"        // more cpu time; in milliseconds
	CauseWall       = "wall"       // it lived longer; in milliseconds
	CauseClosed     = "closed"     // its client asked
	CauseSupervisor = "supervisor" // the supervisor or the engine failed; see Message
)
