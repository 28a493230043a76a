"""``make dashboards``: writes every dashboard to the chart."""

from charts.boards import BOARDS
from charts.grafana import as_json
from charts.rendering import CHART

if __name__ == "__main__":
    for board in BOARDS:
        (CHART / "dashboards" / board.file_name).write_text(as_json(board))
