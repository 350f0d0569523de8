__version__ = "0.1.0"


def predict(paths, model=None, processes=1):
    "Predict emotion for video files, one row each. `model`: a run's checkpoint/ folder or a name on a hub; None takes the run that was trained last."
    from vat_nb.runs.recognizer import predict_files # brings torch: `import vat_nb` alone stays instant
    return predict_files(paths, model, processes)
