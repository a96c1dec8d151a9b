package container

import "errors"

// undoStack collects, in one constructor, how to undo what it has done so far.
type undoStack struct{ steps []func() error }

// add pushes a step; run calls the newest first.
func (u *undoStack) add(step func() error) { u.steps = append(u.steps, step) }

// run undoes everything and returns the errors of all steps joined.
func (u *undoStack) run() error {
	var errs []error
	for i := len(u.steps) - 1; i >= 0; i-- {
		errs = append(errs, u.steps[i]())
	}
	u.steps = nil
	return errors.Join(errs...)
}
