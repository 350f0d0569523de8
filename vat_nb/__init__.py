__version__ = "0.1.0"


def predict(
    paths,  # one video file or several
    model=None,  # a run's checkpoint/ folder or a name on a hub; None takes the run that was trained last
    processes=1,  # that read the files
):  # a table with one row for each file
    "Predict the emotion in video files."
    from vat_nb.runs.recognizer import predict_files  # brings torch: `import vat_nb` alone stays instant
    return predict_files(paths, model, processes)
