package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// addDocker puts the runtime into daemon.json. Every other key keeps its value, of whatever form.
func addDocker(before []byte, runtime string) ([]byte, error) {
	daemon, runtimes, err := dockerRuntimes(before)
	if err != nil {
		return nil, err
	}
	if entry, ok := runtimes[Class]; ok {
		var is struct {
			Path string `json:"path"`
		}
		if err := json.Unmarshal(entry, &is); err == nil && is.Path == runtime {
			return before, nil
		}
	}
	path, err := json.Marshal(map[string]string{"path": runtime})
	if err != nil {
		return nil, err
	}
	runtimes[Class] = path
	return encodeDocker(daemon, runtimes)
}

// removeDocker takes the runtime out again. What is left of a file that we made is none.
func removeDocker(before []byte) ([]byte, error) {
	daemon, runtimes, err := dockerRuntimes(before)
	if err != nil {
		return nil, err
	}
	if _, ok := runtimes[Class]; !ok {
		return before, nil
	}
	if string(daemon["default-runtime"]) == `"`+Class+`"` {
		return nil, fmt.Errorf("default-runtime is %s: docker would not start without it, so set another first", Class)
	}
	delete(runtimes, Class)
	if len(runtimes) == 0 && len(daemon) == 1 {
		return nil, nil
	}
	return encodeDocker(daemon, runtimes)
}

func dockerRuntimes(data []byte) (daemon, runtimes map[string]json.RawMessage, err error) {
	daemon, runtimes = map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if len(bytes.TrimSpace(data)) == 0 {
		return daemon, runtimes, nil
	}
	if err := json.Unmarshal(data, &daemon); err != nil {
		return nil, nil, fmt.Errorf("reading it as JSON: %w", err)
	}
	if daemon == nil {
		return nil, nil, errors.New("reading it as JSON: it is null, not an object")
	}
	if text, ok := daemon["runtimes"]; ok {
		if err := json.Unmarshal(text, &runtimes); err != nil {
			return nil, nil, fmt.Errorf(`reading "runtimes": %w`, err)
		}
	}
	if runtimes == nil {
		runtimes = map[string]json.RawMessage{}
	}
	return daemon, runtimes, nil
}

func encodeDocker(daemon, runtimes map[string]json.RawMessage) ([]byte, error) {
	delete(daemon, "runtimes")
	if len(runtimes) > 0 {
		text, err := json.Marshal(runtimes)
		if err != nil {
			return nil, err
		}
		daemon["runtimes"] = text
	}
	out, err := json.MarshalIndent(daemon, "", "  ")
	return append(out, '\n'), err
}
